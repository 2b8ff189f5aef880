//! Binds the tables that the binlog tells of to those that are followed.

use super::{Follower, Mapped, Out, Table};
use crate::{
    Error, Result,
    mysql::{
        bind::{Evolution, bind, evolution, has_unknown},
        binlog::{event::Event, table_map::TableMap},
        catalog::list,
        position::Copy,
        stop::Stop,
    },
};

impl Follower {
    pub(super) async fn map(&mut self, map: TableMap, out: &mut Out) -> Result<Option<Event>> {
        if self.maps.get(&map.table_id).is_some_and(|mapped| mapped.map == map) {
            return Ok(None);
        }
        let ours = |table: &Table| table.schema.name == map.table && !table.dropped;
        let index = self.tables.iter().position(ours).filter(|_| map.database == self.server.database);
        // Events before the copy of a table that came later are passed over: it may have had other columns then.
        let index = index.filter(|index| self.tables[*index].copy != Copy::NotStarted);
        let Some(index) = index else {
            // A table that begins to be copied must be bound then.
            self.maps.insert(
                map.table_id,
                Mapped { map: TableMap { columns: Vec::new(), unreadable: None, ..map }, table: None },
            );
            return Ok(None);
        };
        if let Some(why) = &map.unreadable {
            let table = self.tables[index].schema.full_name();
            return Err(Error::unsupported(format!("table {table} cannot be read from the binlog: {why}")));
        }
        let bound = |own: &Self| {
            let table = &own.tables[index];
            bind(&map, &table.schema, &table.found, &own.collations)
        };
        let table = &self.tables[index];
        let mut binding = bound(self);
        self.unnamed = map.columns.iter().any(|column| column.name.is_none());
        if !self.unnamed && (binding.is_err() || has_unknown(&map, &table.schema, &table.found)) {
            if !out.is_empty() {
                return Ok(Some(Event::TableMap(map)));
            }
            self.refresh(index, out).await?;
            binding = bound(self);
        }
        let table = Some((index, binding?));
        self.maps.insert(map.table_id, Mapped { map, table });
        Ok(None)
    }

    /// Compares a table with what the catalog has now.
    pub(super) async fn refresh(&mut self, index: usize, out: &mut Out) -> Result<()> {
        let database = self.server.database.clone();
        let found = list(self.side().await?, &database).await?;
        let table = &mut self.tables[index];
        // A table that is gone by now is told so by an event that comes.
        let Some(found) = found.into_iter().find(|found| found.schema.name == table.schema.name) else { return Ok(()) };
        match evolution(&table.schema, &found) {
            Evolution::Same => {}
            // What the catalog has now may be another change than the one that was read.
            Evolution::Grown { .. } if self.unnamed => {
                return Err(Stop::NoNames { table: table.schema.full_name() }.into());
            }
            Evolution::Grown { again } => {
                table.schema = found.schema.clone();
                if again && table.copy != Copy::NotStarted {
                    table.copy = Copy::After(Vec::new());
                    out.polled.copied_again.push(index);
                }
                out.polled.evolved.push((index, table.schema.clone()));
                self.waiting.take_if(|waiting| waiting.table == index);
                self.maps.retain(|_, mapped| mapped.table.as_ref().is_none_or(|(table, _)| *table != index));
            }
            Evolution::Else(what) => {
                return Err(Stop::ColumnsChanged { table: table.schema.full_name(), what }.into());
            }
        }
        table.found = found;
        Ok(())
    }
}
