//! Two syncs that write back to each other would hand a change round for ever: the second is refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidemill_core::log::{Session, Table};

use super::{file::SyncSpec, owner_of};
use crate::{Error, Result, change::TableSchema, converter::TopicSchema, translate::Translation, types::Dialect};

/// Position part that says between which databases a sync runs.
pub(super) const ENDS: &str = "ends";

/// The databases of a sync, as [`Endpoint::identity`](crate::endpoint::Endpoint::identity) names them.
#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ends {
    from: String,
    to: String,
}

/// The part of a sync.
pub(super) fn ends(spec: &SyncSpec) -> Result<String> {
    let ends = Ends { from: spec.from.identity(), to: spec.to.identity() };
    serde_json::to_string(&ends).map_err(|e| Error::internal("encode the ends of a sync").with_source(e))
}

/// Refuses tables that another sync of this log writes from the database that they are to go to.
///
/// # Errors
/// `Conflict` names the table and the other sync.
pub(super) async fn refuse_rounds(
    session: &dyn Session,
    spec: &SyncSpec,
    from: Dialect,
    tables: &[TableSchema],
) -> Result<()> {
    let mut written: BTreeMap<String, Vec<TableSchema>> = BTreeMap::new();
    for entry in session.table(Table::Schemas).await?.values() {
        let schema = TopicSchema::decode(entry.value.as_bytes())?;
        if schema.sync != spec.name {
            let target = Translation::new(&schema, from).table().clone();
            written.entry(schema.sync).or_default().push(target);
        }
    }
    let back = Ends { from: spec.to.identity(), to: spec.from.identity() };
    for (other, targets) in written {
        let Some(ends) = session.positions(&owner_of(&other)).await?.remove(ENDS) else { continue };
        let ends: Ends = serde_json::from_str(&ends)
            .map_err(|e| Error::corrupt(format!("the ends of sync {other} are malformed")).with_source(e))?;
        let round = |table: &&TableSchema| targets.iter().any(|target| target.name.eq_ignore_ascii_case(&table.name));
        if ends == back
            && let Some(table) = tables.iter().find(round)
        {
            return Err(Error::conflict(format!(
                "table {} is written by sync {other}, from the database that it is to go to: a change would go round for \
                 ever; leave the table out of one of the two syncs",
                table.full_name()
            )));
        }
    }
    Ok(())
}
