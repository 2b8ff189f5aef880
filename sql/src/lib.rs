//! SQL over topics: DataFusion plans and runs bounded queries whose tables are the topics of the log.
//!
//! # The life of a statement
//!
//! 1. [`statement`] parses the text with PostgreSQL's dialect, checks that it is one statement and that it only reads.
//!    [`windows`] makes the windowing table functions readable before.
//! 2. [`catalog`] lists the topics and their schemas, once for the statement. The topic of a sync is the table
//!    `<sync>."<table>"`, any other topic is a table of the schema `public`.
//! 3. [`names`] resolves table and column names as they were declared, also where they were written without quotes in
//!    another case, and finds out which tables are read and whether hidden columns of them are wanted.
//! 4. The log gives one consistent cut over the partitions of all these tables. Everything below it is what the
//!    statement sees, however long it runs.
//! 5. DataFusion plans and runs. [`table`] scans: the newest row of each key of a sync's topic, or its changes, or plain
//!    records; [`decode`] turns records into Arrow batches, the projected columns only. Scans run on blocking threads
//!    and end when the result is dropped.
//! 6. [`render()`] writes the batches as a table, JSON, JSON lines or CSV while they come.
//!
//! # Columns
//!
//! A sync's columns have the types of [`tidemill_connect::converter::Kind`]: BIGINT, DOUBLE, TEXT, BYTEA; a column
//! without a declared type is TEXT and shows every value as text. A value that does not fit its column fails the query
//! with its place, and the query that reads it: `texts_of(t)` is the table with every column as text, which
//! `TRY_CAST` takes, and `records_of(t)` has the records as they are. Beside them every table has hidden columns, which `*` leaves out and which can be named: `_partition`,
//! `_offset`, `_timestamp`, `_key` (text) and `_headers` (a JSON array, as names may repeat). Plain topics have the
//! columns `_key` and `_value`. Bytes that are not UTF-8 appear in text columns as `\x` and hex digits.
//!
//! # Windows
//!
//! `FROM TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10 seconds'[, offset])`, as in the standard and Flink, adds the columns
//! `window_start`, `window_end` and `window_time` (end - 1 ms) to the rows of a table, of `changes_of(t)`, of a common
//! table expression or of a subquery: `TABLE (SELECT ...)`. Arguments may be named: `DATA`, `TIMECOL`, `SIZE`, `OFFSET`.
//! The time column is TIMESTAMP, BIGINT (milliseconds since 1970), TEXT (ISO 8601, UTC unless it says otherwise), or
//! `_timestamp`. A text that is no date-time fails the query; a row whose time is NULL belongs to no window and is left
//! out. Streams and SQL ask the same [`tidemill_streams::window`].
//!
//! # What is absent
//!
//! No statement writes, opens files or reaches the network: no location, no external table, no function that reads.
//! Live queries (`EMIT CHANGES`), views, and the windows `HOP`, `CUMULATE` and `SESSION` are not here yet.

mod catalog;
mod decode;
mod error;
mod memory;
mod names;
mod render;
mod session;
mod statement;
mod table;
mod topics;
mod windows;

pub use render::{Format, render};
pub use session::{QueryResult, Session, Settings};
pub use tidemill_core::{Error, ErrorKind, Result};
pub use topics::Topics;
