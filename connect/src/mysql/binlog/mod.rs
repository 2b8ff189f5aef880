//! The binlog's events, byte for byte: what they say of tables and rows.

pub mod bytes;
pub mod cell;
pub mod compressed;
pub mod event;
pub mod rows;
pub mod table_map;
