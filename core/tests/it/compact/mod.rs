//! Compaction against a plain `BTreeMap`: the newest record of each key is always there, nothing is made up, tombstones
//! stay as long as promised and go afterwards; and what goes wrong on the way harms nobody.

mod crash;
mod faults;
mod keyed;
mod model;
mod speed;
mod tables;
mod transactions;
