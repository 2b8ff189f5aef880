//! `sync plan`: what a sync would make on both sides, and what a target cannot hold as it is.

use super::{file::SyncSpec, topic_of};
use crate::{
    Result,
    connector::Finding,
    converter::TopicSchema,
    patterns::leave_out,
    translate::{Translation, check_names},
};

/// What a sync would make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// In the source, while it is followed: a line each.
    pub source: Vec<String>,
    /// In the target and in the log, by table.
    pub tables: Vec<TablePlan>,
}

/// What becomes of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePlan {
    /// Its full name in the source.
    pub table: String,
    /// Its topic.
    pub topic: String,
    /// Its full name in the target.
    pub target: String,
    /// What becomes of the target's table, or why nothing does; none where the target could not be asked.
    pub existing: Option<String>,
    /// Its columns.
    pub columns: Vec<ColumnPlan>,
}

/// What becomes of one column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnPlan {
    /// Its name.
    pub name: String,
    /// Its type in the source, as declared.
    pub from: String,
    /// Its type in the target.
    pub to: String,
    /// Whether it is part of the key.
    pub key: bool,
    /// What is lost or changed on the way.
    pub loss: Option<String>,
}

/// Looks at the source and makes nothing.
///
/// # Errors
/// Where the source cannot be read; `Conflict` where two of its tables would be one in the target.
pub async fn plan(spec: &SyncSpec) -> Result<Plan> {
    let (from, to) = (spec.from.source()?, spec.to.dialect());
    let tables = from.tables(&spec.tables).await?;
    let drafts: Vec<_> = tables.iter().map(|table| TopicSchema::draft(&spec.name, from.dialect(), table)).collect();
    check_names(&drafts, to)?;
    let source = from.makes(&spec.name, &tables).iter().map(|line| spec.typed(line)).collect();
    // A target that is away is no reason not to plan.
    let sink = spec.sink()?;
    let mut found = sink.preflight(&spec.name, "", &drafts).await.unwrap_or_default();
    found.extend(sink.existing(&spec.name, "", &drafts).await.unwrap_or_default());
    let table = |draft| table_plan(draft, &Translation::new(draft, to), &spec.name, &found);
    let tables = drafts.iter().map(table).collect();
    Ok(Plan { source, tables })
}

fn table_plan(draft: &TopicSchema, translation: &Translation, sync: &str, found: &[Finding]) -> TablePlan {
    let (target, losses) = (translation.table(), translation.losses());
    let column = |(from, to): (&crate::change::Column, &crate::change::Column)| ColumnPlan {
        name: from.name.clone(),
        from: from.declared_type.clone(),
        to: to.declared_type.clone(),
        key: from.key.is_some(),
        loss: losses.iter().find(|(name, _)| *name == from.name).map(|(_, loss)| loss.clone()),
    };
    TablePlan {
        table: draft.table.full_name(),
        topic: topic_of(sync, &draft.table),
        target: target.full_name(),
        existing: match draft.table.key_columns().is_empty() {
            true => Some(format!("refused: it has no key: make one, or {}", leave_out(&draft.table.full_name()))),
            false => found.iter().find(|f| f.subject == target.full_name()).map(|f| f.message.clone()),
        },
        columns: draft.table.columns.iter().zip(&target.columns).map(column).collect(),
    }
}
