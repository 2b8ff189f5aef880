//! MariaDB and MySQL: everything that speaks to such a server.
//!
//! | module | what it does |
//! |---|---|
//! | [`endpoint`] | a database as a sync file names it, and sessions with its server |
//! | `source` | such a database as a source |
//! | `catalog` | which tables there are, and which server it is |
//! | `preflight` | what would go wrong, and the cure, before anything is begun |
//! | `follow` | weaves changes and copies together |
//! | `stream` | the connection over which the binlog comes |
//! | `binlog` | events, byte for byte |
//! | `copy` | pieces of tables, each at a known place of the binlog |
//! | `reader` | reads tables without following them |
//! | `ddl` | what statements in the binlog mean for tables |
//! | `position`, `gtid`, `lag` | how far a follower is |
//! | `stop` | why it stops |
//! | [`sink`], `sink_connector`, `sink_positions`, `sink_table`, `sink_write`, `sink_preflight` | such a database as a target |

mod bind;
mod binlog;
mod catalog;
mod copy;
mod ddl;
mod declared;
pub mod endpoint;
mod follow;
mod gtid;
mod json;
pub(crate) mod lag;
mod position;
mod preflight;
mod reader;
pub mod sink;
mod sink_connector;
mod sink_positions;
mod sink_preflight;
mod sink_table;
mod sink_write;
mod source;
mod stop;
mod stream;
mod text;
mod value;

/// Switches for tests; none of them is for use.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Knobs {
    /// Copies take snapshots that are behind what was delivered: a test that still passes then proves nothing.
    pub stale_snapshots: bool,
    /// Copies find their place as on MySQL, by a short lock of the table.
    pub lock_tables: bool,
}
