//! MariaDB and MySQL: everything that speaks to such a server.

pub mod endpoint;
pub mod sink;
mod sink_preflight;
mod sink_table;
mod sink_write;
