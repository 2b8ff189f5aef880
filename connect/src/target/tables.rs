//! What the sinks of database servers do alike with the target's tables: which are made, changed, taken over or refused.

use async_trait::async_trait;

use super::{
    Existing,
    existing::{OnExisting, Writer, check_kept, refuse_written, same_table},
    gone,
    ledger::{Ledger, Stored},
    refuse_tables,
};
use crate::{Result, change::TableSchema, converter::TopicSchema, translate::Translation, types::Dialect};

/// The tables of a target, by a connection to it.
#[async_trait]
pub(crate) trait Tables: Send {
    /// Which kind of database it is.
    const DIALECT: Dialect;

    /// The table as the server has it.
    async fn inspect(&mut self, table: &TableSchema) -> Result<Option<TableSchema>>;

    /// Whether it exists, and whether it holds rows.
    async fn state(&mut self, table: &TableSchema) -> Result<Existing>;

    /// What keeps one that exists from being used.
    async fn unfit(&mut self, table: &TableSchema) -> Result<Option<String>>;

    /// Makes it where it is not there.
    async fn create(&mut self, table: &TableSchema) -> Result<()>;

    /// Drops it where it is there.
    async fn drop_table(&mut self, table: &TableSchema) -> Result<()>;

    /// Adds columns that are missing, and gives others their wider types.
    async fn evolve(&mut self, table: &TableSchema) -> Result<()>;

    /// All syncs that write to the target, with their topics that have tables.
    async fn writers(&mut self) -> Result<Vec<Writer>>;

    /// Forgets that a sync writes the table of a topic.
    async fn forget(&mut self, sync: &str, topic: &str) -> Result<()>;
}

/// A sync's part of a target.
pub(crate) struct Owner<'a> {
    pub(crate) target: &'a str,
    pub(crate) ledger: &'a Ledger,
    pub(crate) on_existing: OnExisting,
}

impl Owner<'_> {
    /// Refuses tables that hold rows of others, or are empty but of another shape. `stored` tells the sync's own.
    ///
    /// # Errors
    /// `Conflict` names all of them.
    pub(crate) async fn check<T: Tables>(
        &self,
        tables: &mut T,
        wanted: &[(&str, Translation)],
        stored: &[Stored],
    ) -> Result<()> {
        let (mut filled, mut misfits) = (Vec::new(), Vec::new());
        let writers = tables.writers().await?;
        for (topic, translation) in wanted {
            if stored.iter().any(|row| row.topic == *topic && row.copy.is_some()) {
                continue;
            }
            let table = translation.table();
            let existing = tables.state(table).await?;
            if existing != Existing::No {
                let own = (self.ledger.sync(), *topic);
                refuse_written(self.on_existing, self.ledger.log_id(), T::DIALECT, own, table, &writers)?;
            }
            if self.on_existing.refuses(existing) {
                filled.push(table.full_name());
            } else if self.on_existing.keeps(existing)
                && let Some(why) = tables.unfit(table).await?
            {
                misfits.push(format!("{} ({why})", table.full_name()));
            }
        }
        refuse_tables(self.target, &filled, &misfits, self.on_existing == OnExisting::Merge)
    }

    /// Makes a topic's table be there with this schema. Gives the row of the positions that says so, and whether the table
    /// has no row yet.
    ///
    /// # Errors
    /// `Conflict` where the table is another's, or gone.
    pub(crate) async fn make_ready<T: Tables>(
        &self,
        tables: &mut T,
        stored: Option<&Stored>,
        schema: &TopicSchema,
        translation: &Translation,
    ) -> Result<(Stored, bool)> {
        let wanted = translation.table();
        // The databases have no unsigned integers for it: numbers of schemas are kept by their bits.
        let (copy, own) = (schema.copy_id().cast_signed(), schema.id.cast_signed());
        let ours = stored.is_some_and(|row| row.copy.is_some());
        let mut columns = stored.and_then(|row| row.schema).unwrap_or(own);
        let same_copy = ours && stored.and_then(|row| row.copy) == Some(copy);
        let found = if ours { tables.inspect(wanted).await? } else { None };
        let mut empty = false;
        match found {
            Some(_) if same_copy => {
                if columns < own {
                    tables.evolve(wanted).await?;
                    columns = own;
                }
            }
            None if same_copy => return Err(gone(schema, self.target)),
            // Another copy begins. Rows that only the target has would go with the table.
            Some(found) if self.on_existing == OnExisting::Merge => {
                check_kept(wanted, &found, |_| true)?;
                tables.evolve(wanted).await?;
                columns = own;
            }
            _ => {
                match ours {
                    true => tables.drop_table(wanted).await?,
                    false => self.take_over(tables, schema, translation).await?,
                }
                tables.create(wanted).await?;
                empty = tables.state(wanted).await? != Existing::WithRows;
                columns = own;
            }
        }
        let row = Stored {
            topic: schema.topic.clone(),
            log_id: self.ledger.log_id().to_owned(),
            next_offset: stored.map_or(0, |row| row.next_offset),
            copy: Some(copy),
            schema: Some(columns),
            generation: 0,
        };
        Ok((row, empty))
    }

    /// Makes room for a table that the sync does not own yet, or finds that what is there may stay.
    async fn take_over<T: Tables>(
        &self,
        tables: &mut T,
        schema: &TopicSchema,
        translation: &Translation,
    ) -> Result<()> {
        self.check(tables, &[(&schema.topic, translation.clone())], &[]).await?;
        if self.on_existing != OnExisting::Replace {
            return Ok(());
        }
        // What is left of writers are those of other logs.
        let writers = tables.writers().await?;
        for other in same_table(T::DIALECT, (self.ledger.sync(), &schema.topic), &writers) {
            tables.forget(&other.sync, &other.topic).await?;
        }
        tables.drop_table(translation.table()).await
    }
}
