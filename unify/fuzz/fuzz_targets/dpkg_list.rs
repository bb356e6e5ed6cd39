#![no_main]
#[allow(dead_code)] // each target uses one of them
#[path = "../entry.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entry::dpkg_list(bytes));
