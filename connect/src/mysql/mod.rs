//! MariaDB and MySQL: everything that speaks to such a server.

pub mod binlog;
pub mod declared;
pub mod endpoint;
mod json;
pub mod text;
pub mod value;
