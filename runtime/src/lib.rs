//! The tools around running guests, and what they need of the host. Must not link `SQLite`.

pub mod scope;
pub mod stores;
