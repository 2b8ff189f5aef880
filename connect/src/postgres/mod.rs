//! PostgreSQL: a source that follows the server's logical stream.

mod batch;
mod catalog;
mod connector;
mod copy;
pub mod endpoint;
mod lookup;
mod pgoutput;
mod position;
mod preflight;
mod reader;
mod shape;
mod slot;
mod source;
mod stop;
mod stream;
mod take;
mod text;

pub use source::PostgresSource;
