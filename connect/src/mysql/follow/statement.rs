//! Statements in the binlog: ends of transactions, and tables that change.

use super::{Follower, Out};
use crate::{
    Result,
    mysql::{
        binlog::event::Event,
        ddl::{Name, Statement},
        position::Copy,
        stop::Stop,
    },
};

impl Follower {
    /// Takes a statement; gives it back where it must wait until what was read before is out of hand.
    pub(super) async fn statement(&mut self, database: String, text: String, out: &mut Out) -> Result<Option<Event>> {
        let statement = Statement::parse(&text);
        let back = |text| Ok(Some(Event::Query { database: database.clone(), text }));
        match &statement {
            Statement::Begin => {
                match &mut self.transaction {
                    Some(transaction) => transaction.standalone = false,
                    None => self.begin(None, false, false, 0),
                }
                return Ok(None);
            }
            Statement::Rollback => {
                let touched = self.transaction.as_ref().map(|transaction| &transaction.touched);
                let tables = touched.into_iter().flatten().map(|table| self.tables[*table].schema.full_name());
                let tables: Vec<_> = tables.collect();
                if !tables.is_empty() {
                    return Err(Stop::Undone { tables }.into());
                }
                if text.to_ascii_uppercase().contains(" TO ") {
                    return Ok(None);
                }
            }
            Statement::Xa => {
                let upper = text.to_ascii_uppercase();
                if !upper.contains("COMMIT") && !upper.contains("ROLLBACK") {
                    if let Some(transaction) = &mut self.transaction {
                        (transaction.prepared, transaction.standalone) = (true, false);
                    }
                    return Ok(None);
                }
            }
            Statement::Other => {
                if self.transaction.as_ref().is_none_or(|transaction| !transaction.standalone) {
                    return Ok(None);
                }
            }
            Statement::Rows(names) => {
                let copied = |table: &usize| self.tables[*table].copy != Copy::NotStarted;
                if let Some(table) = self.named(names, &database).into_iter().find(copied) {
                    return Err(Stop::Statement { table: self.tables[table].schema.full_name() }.into());
                }
                if self.transaction.as_ref().is_some_and(|transaction| !transaction.standalone) {
                    return Ok(None);
                }
            }
            Statement::Truncate(name) => {
                for table in self.named(std::slice::from_ref(name), &database) {
                    if self.tables[table].copy == Copy::NotStarted {
                        continue;
                    }
                    // It comes before all changes of a poll.
                    if !out.is_empty() {
                        return back(text);
                    }
                    out.polled.truncated.push(table);
                    let place = self.place();
                    self.waiting.take_if(|waiting| waiting.table == table && waiting.at < place);
                }
            }
            Statement::Drop(names) => {
                for table in self.named(names, &database) {
                    self.dropped(table, out);
                }
            }
            Statement::DropDatabase(name) => {
                if name.eq_ignore_ascii_case(&self.server.database) {
                    (0..self.tables.len()).for_each(|table| self.dropped(table, out));
                }
            }
            Statement::Alter { names, loses, creates } => {
                for table in self.named(names, &database) {
                    let (is_new, copy) = (self.tables[table].dropped, &self.tables[table].copy);
                    if *creates && !is_new && !loses {
                        // Only a statement that found the table there.
                        continue;
                    }
                    if (*loses || is_new) && *copy != Copy::NotStarted {
                        let statement = text.chars().take(100).collect();
                        let table = self.tables[table].schema.full_name();
                        return Err(Stop::RowsLost { table, statement }.into());
                    }
                    if !out.is_empty() {
                        return back(text);
                    }
                    self.refresh(table, out).await?;
                }
            }
            Statement::Commit => {}
        }
        self.end_transaction();
        Ok(None)
    }

    /// The tables that names mean.
    fn named(&self, names: &[Name], database: &str) -> Vec<usize> {
        let is_named = |table: &usize| {
            let table = &self.tables[*table].schema;
            names.iter().any(|name| name.means(database, &self.server.database, &table.name))
        };
        (0..self.tables.len()).filter(is_named).collect()
    }

    fn dropped(&mut self, table: usize, out: &mut Out) {
        let state = &mut self.tables[table];
        if state.copy == Copy::NotStarted || state.dropped {
            return;
        }
        tracing::warn!(table = state.schema.full_name(), "table was dropped in the source; its topic and target stay");
        state.dropped = true;
        if state.copy != Copy::Done {
            state.copy = Copy::Done;
            out.polled.finished_tables.push(table);
        }
        self.waiting.take_if(|waiting| waiting.table == table);
    }
}
