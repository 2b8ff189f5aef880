//! PostgreSQL: a source that follows the server's logical stream, and a sink.

mod batch;
mod catalog;
mod connector;
mod copy;
pub mod endpoint;
pub(crate) mod lag;
mod lookup;
mod pgoutput;
mod position;
mod preflight;
mod reader;
mod shape;
pub mod sink;
mod sink_connector;
mod sink_positions;
mod sink_preflight;
mod sink_table;
mod sink_write;
mod slot;
mod source;
mod stop;
mod stream;
mod take;
mod text;

pub use source::PostgresSource;
