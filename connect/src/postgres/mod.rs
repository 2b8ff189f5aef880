//! PostgreSQL.

pub mod endpoint;
