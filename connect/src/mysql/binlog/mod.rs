//! The binlog's events, byte for byte: what they say of tables and rows.

pub mod bytes;
pub mod cell;
pub mod compressed;
pub mod event;
pub mod payload;
#[cfg(test)]
mod recorded;
pub mod rows;
pub mod table_map;

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::{
        event::{self, Event},
        rows::{Binding, Reader},
        table_map::TableMap,
    };
    use crate::{
        change::Value,
        mysql::{binlog::cell::Cell, declared::Declared, json::json_text, text::Charset},
    };

    /// What MariaDB wrote of `shop.vg (id int primary key, n int, v int, p int)`: the map and one row.
    const MAP: &[u8] = &[
        23, 0, 0, 0, 0, 0, 1, 0, 4, b's', b'h', b'o', b'p', 0, 2, b'v', b'g', 0, 4, 3, 3, 3, 3, 0, 14, 1, 1, 0, 4, 9,
        2, b'i', b'd', 1, b'n', 1, b'v', 1, b'p', 8, 1, 0,
    ];
    const ROW: &[u8] = &[23, 0, 0, 0, 0, 0, 1, 0, 4, 0x0f, 0xf0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0];

    fn binding(map: &TableMap) -> Binding {
        let declared = Declared::parse("int(11)");
        let cells = map.columns.iter().enumerate();
        let cells: Vec<_> =
            cells.filter_map(|(i, column)| Some((Cell::new(column, &declared, None).ok()?, Some(i)))).collect();
        Binding { empty: vec![Value::Null; cells.len()], cells }
    }

    #[test]
    fn what_a_server_wrote_is_read() {
        let map = TableMap::read(MAP).unwrap();
        let names: Vec<_> = map.columns.iter().map(|column| column.name.as_deref().unwrap()).collect();
        assert_eq!((map.table.as_str(), names), ("vg", vec!["id", "n", "v", "p"]));
        let binding = binding(&map);
        let Event::Rows(rows) = event::read(23, 1, ROW).unwrap() else { panic!("no rows") };
        let image = Reader::new(rows, &binding).unwrap().next(&binding).unwrap().unwrap();
        assert_eq!(image.after, Some([1, 1, 2, 3].map(Value::Integer).to_vec()));
    }

    #[test]
    fn a_map_with_an_unknown_type_names_its_table() {
        let mut map = MAP.to_vec();
        let kinds = map.windows(4).position(|kinds| kinds == [3, 3, 3, 3]).unwrap();
        map[kinds + 2] = 200;
        let map = TableMap::read(&map).unwrap();
        assert_eq!((map.table.as_str(), map.columns.len()), ("vg", 0));
        assert!(map.unreadable.unwrap().contains("column 3 has the unknown type 200"));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic_or_run_on() {
        let mut random = StdRng::seed_from_u64(4);
        let binding = binding(&TableMap::read(MAP).unwrap());
        let drain = |kind: u8, data: &[u8]| {
            if let Ok(Event::Rows(rows)) = event::read(kind, 1, data)
                && let Ok(mut reader) = Reader::new(rows, &binding)
            {
                while let Ok(Some(_)) = reader.next(&binding) {}
            }
        };
        for end in 0..MAP.len().max(ROW.len()) {
            let _ = event::read(19, 1, &MAP[..end.min(MAP.len())]);
            drain(23, &ROW[..end.min(ROW.len())]);
        }
        for _ in 0..20_000 {
            let mut data = if random.random() { MAP.to_vec() } else { ROW.to_vec() };
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..data.len());
                data[at] = random.random();
            }
            drain(random.random(), &data);
            let _ = event::read(19, 1, &data);
            let _ = json_text(&data);
            // Any column, over any bytes.
            let column = super::table_map::MapColumn {
                kind: random.random(),
                meta: [random.random(), random.random()],
                ..super::table_map::MapColumn::default()
            };
            for declared in [
                "int",
                "decimal(65,30)",
                "bit(64)",
                "time(6)",
                "datetime(6)",
                "timestamp",
                "enum('a')",
                "set('a')",
                "json",
                "uuid",
                "inet6",
                "binary(255)",
                "text",
                "geometry",
                "year",
                "date",
                "float",
            ] {
                if let Ok(cell) = Cell::new(&column, &Declared::parse(declared), Some(Charset::Utf16)) {
                    let _ = cell.read(&mut super::bytes::Bytes::new(&data));
                }
            }
        }
    }
}
