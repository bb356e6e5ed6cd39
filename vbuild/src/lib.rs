//! Making guests: clone, and install from a distribution, tar or OCI layout. Comes with later work.
