//! Integration tests of the binary, as a user runs it. The other program, which writes the sources, is Python's SQLite.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod beside;
mod cli;
mod demo;
mod first_steps;
mod follow;
mod kill9;
mod ledger;
mod lifecycle;
mod log_tools;
mod one_owner;
mod over_kafka;
mod pairs;
mod readme;
mod rounds;
#[path = "../../../connect/tests/it/servers/mod.rs"]
mod servers;
mod support;
mod verify;
