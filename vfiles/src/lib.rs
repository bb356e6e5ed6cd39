//! Reading and moving guests: inventory, archives, migration, space, integrity. Comes with later work.
