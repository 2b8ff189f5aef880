//! Tables that a sync's patterns fit and that it does not follow yet: taken up where nothing is in the way, else told and
//! left out, so that the others go on.

use std::{collections::BTreeSet, future::pending, sync::PoisonError, time::Duration};

use super::run::Runner;
use crate::{
    Error, Result,
    change::TableSchema,
    connector::{Level, SourceConnector},
    converter::TopicSchema,
    translate::Translation,
};

/// How often a sync at work looks for tables that came.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

impl Runner<'_> {
    /// The tables to follow, of those that the patterns fit. Where the sync ran before, a `*` may bring tables that cannot
    /// be followed: they are left out.
    ///
    /// # Errors
    /// `Conflict` where one is named that cannot be followed.
    pub(super) async fn fitting(
        &self,
        from: &dyn SourceConnector,
        tables: Vec<TableSchema>,
        followed: &BTreeSet<String>,
    ) -> Result<Vec<TableSchema>> {
        let is_new = |table: &TableSchema| !followed.contains(&table.full_name().to_ascii_lowercase());
        let new: Vec<_> = tables.iter().filter(|table| is_new(table)).cloned().collect();
        if followed.is_empty() || new.is_empty() {
            return Ok(tables);
        }
        let (sync, log_id, to) = (&self.spec.name, self.session.log_id(), self.spec.sink()?);
        let drafts: Vec<_> = new.iter().map(|table| TopicSchema::draft(sync, from.dialect(), table)).collect();
        let mut findings = from.preflight(sync, &log_id, &new, false).await?;
        findings.extend(to.preflight(sync, &log_id, &drafts).await?);
        findings.retain(|finding| finding.level == Level::Refuse);
        let mut unfit = BTreeSet::new();
        for (table, draft) in new.iter().zip(&drafts) {
            let target = Translation::new(draft, to.dialect()).table().clone();
            let names = [table.full_name(), table.name.clone(), target.full_name(), target.name, "publication".into()];
            let Some(refused) = findings.iter().find(|finding| names.contains(&finding.subject)) else { continue };
            let cure = refused.cure.as_deref().map(|cure| format!("; {cure}")).unwrap_or_default();
            let why = format!("table {}: {}{cure}", table.full_name(), refused.message);
            let is_named = |pattern: &String| {
                pattern.eq_ignore_ascii_case(&table.name) || pattern.eq_ignore_ascii_case(&table.full_name())
            };
            if self.spec.tables.iter().any(is_named) {
                return Err(Error::conflict(why));
            }
            if self.left_out.lock().unwrap_or_else(PoisonError::into_inner).insert(why.clone()) {
                tracing::warn!("sync {sync}: left out: {why}");
            }
            unfit.insert(table.full_name());
        }
        Ok(tables.into_iter().filter(|table| !unfit.contains(&table.full_name())).collect())
    }

    /// Waits until there is a table to take up.
    pub(super) async fn table_comes(&self) {
        if self.options.once {
            return pending().await;
        }
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let look = async {
                let from = self.spec.from.source()?;
                let tables = from.tables(&self.spec.tables).await?;
                self.fitting(&*from, tables, &followed).await
            };
            // A side that is away, or a name that is wrong now, is the run's own business.
            let found = if followed.is_empty() { Vec::new() } else { look.await.unwrap_or_default() };
            if let Some(new) = found.iter().find(|table| !followed.contains(&table.full_name().to_ascii_lowercase())) {
                tracing::info!("sync {}: table {} came and is taken up", self.spec.name, new.full_name());
                return;
            }
        }
    }
}
