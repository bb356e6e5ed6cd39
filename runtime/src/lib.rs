//! The launcher and the tools around running guests. Comes with later work. It must not link `SQLite`.
