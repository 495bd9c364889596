//! The binary `dfstore-peer`.

fn main() {}
