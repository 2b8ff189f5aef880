//! MariaDB and MySQL: everything that speaks to such a server.

pub mod endpoint;
