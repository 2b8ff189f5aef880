//! Real database servers for tests: started here, on a free port, as a user without rights, gone when the test is.
//!
//! Another crate's tests use it by `#[path = "../../../connect/tests/it/servers/mod.rs"] mod servers;`, so it depends on
//! nothing but std, serde_json and rand. What the rest of a test needs of a server is here too: its own client, a judge
//! of equality that asks only those clients, a write load that knows what it committed, a wire that can be cut.
#![allow(dead_code, unused_imports, reason = "each test binary that includes this module uses a part of it")]

pub mod chinook;
pub mod client;
pub mod cut;
pub mod disk;
pub mod judge;
pub mod kafka;
pub mod load;
pub mod mariadb;
pub mod newer;
pub mod postgres;
mod process;
pub mod template;

pub use kafka::Broker;
pub use mariadb::MariaDb;
pub use postgres::Postgres;
pub use process::{Folder, skipped};

/// The user that may do everything.
pub const ADMIN: &str = "admin";
/// The user that may do what a source needs and no more: read, and follow the log.
pub const CDC: &str = "cdc";
/// The user that may do what a sink needs: create tables and write in the test's own databases.
pub const SINK: &str = "sink";
/// Everybody's password. Its signs are those that a URL must escape.
pub const PASSWORD: &str = "p:w/d@1%20";
