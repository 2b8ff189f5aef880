use proptest::prelude::*;

use super::{
    table::{DIALECTS, one_column, page, types},
    *,
};
use crate::ErrorKind;

#[test]
fn types_page_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/TYPES.md");
    let page = page();
    if std::env::var_os("UPDATE_TYPES").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let present = std::fs::read_to_string(path).unwrap_or_default();
    assert!(present == page, "docs/TYPES.md is out of date; it should be:\n{page}");
}

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

/// Values that a column of a kind may have, the extremes among them.
fn values(kind: Kind) -> Vec<Value> {
    let integers = [0, 1, -1, i64::MAX, i64::MIN, 1 << 53, (1 << 53) + 1].map(Value::Integer);
    let texts = |all: &[&str]| all.iter().map(|one| text(one)).collect::<Vec<_>>();
    match kind {
        Kind::Integer => integers.to_vec(),
        Kind::Unsigned => vec![Value::Integer(0), Value::Integer(i64::MAX), Value::Unsigned(u64::MAX)],
        Kind::Boolean => vec![Value::Boolean(true), Value::Boolean(false)],
        Kind::Real => [0.0, -0.0, 0.1, 5e-324, f64::MAX, f64::MIN, f64::NAN, f64::INFINITY, f64::NEG_INFINITY]
            .map(Value::Real)
            .into_iter()
            .chain(integers)
            .collect(),
        Kind::Decimal => {
            let long = format!("{}.{}", "9".repeat(35), "9".repeat(30));
            let longer = format!("1{}", "0".repeat(1000));
            texts(&[
                "0",
                "0.00",
                "-12.50",
                "NaN",
                "Infinity",
                "-Infinity",
                &long,
                &longer,
                "0.0000000000000000000000000000001",
            ])
        }
        Kind::Date => texts(&[
            "2024-02-29",
            "0001-01-01",
            "9999-12-31",
            "0044-03-15 BC",
            "5874897-12-31",
            "infinity",
            "0000-00-00",
            "2024-02-31",
        ]),
        Kind::Time => texts(&["00:00:00", "13:04:05.25", "24:00:00", "-838:59:59", "838:59:59.000001"]),
        Kind::Timestamp => texts(&[
            "2024-02-29T13:04:05.25",
            "294276-12-31T23:59:59.999999",
            "infinity",
            "0000-00-00T00:00:00",
            "0044-03-15T01:00:00 BC",
        ]),
        Kind::Instant => {
            texts(&["2024-02-29T13:04:05.25Z", "294276-12-31T23:59:59.999999Z", "-infinity", "0000-00-00T00:00:00Z"])
        }
        Kind::Json => texts(&["null", "{\"a\": [1, 2.50]}", "\"\\u0000\""]),
        Kind::Uuid => texts(&["123e4567-e89b-12d3-a456-426614174000"]),
        Kind::Blob => vec![Value::Blob(vec![]), Value::Blob((0..=255).collect()), Value::Blob(vec![0; 5000])],
        Kind::Text => texts(&["", "a", "a\0b", "🌊🌊", "NULL", "\\N", " x ", &"long ".repeat(2000), "it's"]),
        Kind::Any => {
            [Value::Integer(1), text("1"), Value::Real(1.5), text("1.5"), Value::Blob(vec![1]), text("")].to_vec()
        }
    }
}

/// A value either becomes one that the target's column has, or is refused by name; what it becomes stays what it is.
fn holds(from: Dialect, declared: &str, key: bool, to: Dialect, value: &Value) -> Result<()> {
    let schema = one_column(from, declared, key);
    let translation = Translation::new(&schema, to);
    let kind = translation.kinds()[1];
    let at = format!("{from} {declared} to {to} {kind:?}: {value:?}");
    match translation.row(vec![Value::Integer(1), value.clone()]) {
        Ok(row) => {
            let spelled = from == to || kind.fits(&row[1]);
            assert!(spelled, "{at} gives {:?}", row[1]);
            let lost = *value != Value::Null && row[1] == Value::Null;
            assert!(!lost, "{at} became NULL");
            let once = translation.comparable(row);
            let twice = translation.comparable(once.clone());
            let same = format!("{once:?}") == format!("{twice:?}");
            assert!(same, "{at}: {once:?} is spelled {twice:?} then");
            if key {
                assert_eq!(translation.key(vec![Value::Integer(1), value.clone()])?.len(), 2);
            }
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Conflict, "{at}");
            assert!(error.to_string().contains("column v"), "{at}: {error}");
            assert!(error.to_string().len() < 400, "{at}: {error}");
        }
    }
    Ok(())
}

#[test]
fn every_value_of_every_type_is_held_or_refused() {
    for from in DIALECTS {
        for to in DIALECTS {
            for declared in types(from) {
                for value in values(from.kind(declared)).into_iter().chain([Value::Null, Value::Unchanged]) {
                    if value == Value::Unchanged {
                        let row = Translation::new(&one_column(from, declared, false), to)
                            .row(vec![Value::Integer(1), value]);
                        assert_eq!(row.unwrap()[1], Value::Unchanged);
                        continue;
                    }
                    for key in [false, true] {
                        holds(from, declared, key, to, &value).unwrap();
                    }
                }
            }
        }
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i64>().prop_map(Value::Integer),
        any::<u64>().prop_map(|u| i64::try_from(u).map_or(Value::Unsigned(u), Value::Integer)),
        any::<bool>().prop_map(Value::Boolean),
        any::<f64>().prop_map(Value::Real),
        any::<String>().prop_map(Value::Text),
        "[-]?[0-9]{1,40}(\\.[0-9]{1,35})?".prop_map(Value::Text),
        "[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}:[0-9]{2}Z?)?".prop_map(Value::Text),
        any::<Vec<u8>>().prop_map(Value::Blob),
        any::<Vec<u8>>().prop_map(Value::InvalidText),
    ]
}

proptest! {
    #[test]
    fn whatever_a_source_gives_is_held_or_refused(value in any_value(), which in any::<prop::sample::Index>(), key in any::<bool>()) {
        for from in DIALECTS {
            let declared = types(from)[which.index(types(from).len())];
            // What its own kind does not have comes from SQLite alone.
            if from != Dialect::Sqlite && !from.kind(declared).fits(&value) {
                continue;
            }
            for to in DIALECTS.into_iter().filter(|to| *to != from) {
                // Of texts with a form of their own a source gives only such.
                let kind = Translation::new(&one_column(from, declared, key), to).kinds()[1];
                if matches!(kind, Kind::Time | Kind::Json | Kind::Uuid) {
                    continue;
                }
                holds(from, declared, key, to, &value).unwrap();
            }
        }
    }
}

fn one(from: Dialect, declared: &str, to: Dialect, value: Value) -> Result<Value> {
    let row = Translation::new(&one_column(from, declared, false), to).row(vec![Value::Integer(1), value])?;
    Ok(row.into_iter().nth(1).unwrap_or(Value::Null))
}

#[test]
fn values_are_spelled_as_the_target_gives_them_back() {
    use Dialect::{Mysql, Postgres, Sqlite};
    for (from, declared, to, value, becomes) in [
        (Sqlite, "NUMERIC(10,2)", Postgres, Value::Real(0.1), text("0.1")),
        (Sqlite, "DECIMAL", Postgres, Value::Real(1e21), text("1000000000000000000000")),
        (Sqlite, "DATE", Postgres, Value::Integer(5), text("5")),
        (Sqlite, "", Mysql, Value::Real(1.0), text("1.0")),
        (Postgres, "boolean", Mysql, Value::Boolean(true), Value::Integer(1)),
        (Postgres, "timestamp with time zone", Mysql, text("2024-01-01T00:00:00Z"), text("2024-01-01T00:00:00")),
        (Postgres, "numeric(10,2)", Sqlite, text("12.50"), Value::Real(12.5)),
        (Postgres, "numeric(10,2)", Sqlite, text("12.00"), Value::Integer(12)),
        (Postgres, "numeric(20,2)", Sqlite, text("12.50"), text("12.50")),
        (Mysql, "bigint unsigned", Postgres, Value::Unsigned(u64::MAX), text("18446744073709551615")),
        (Mysql, "bigint unsigned", Sqlite, Value::Integer(5), Value::Integer(5)),
        (Mysql, "bigint unsigned", Sqlite, Value::Unsigned(u64::MAX), text("18446744073709551615")),
    ] {
        assert_eq!(one(from, declared, to, value.clone()).unwrap(), becomes, "{from} {declared} to {to}: {value:?}");
    }
    for (from, declared, to, value) in [
        (Postgres, "double precision", Sqlite, Value::Real(f64::NAN)),
        (Postgres, "double precision", Mysql, Value::Real(f64::INFINITY)),
        (Postgres, "date", Mysql, text("0044-03-15 BC")),
        (Postgres, "timestamp without time zone", Mysql, text("294276-12-31T23:59:59")),
        (Mysql, "date", Postgres, text("0000-00-00")),
        (Mysql, "varchar(20)", Postgres, text("a\0b")),
        (Sqlite, "INTEGER", Postgres, Value::Real(1.5)),
        (Sqlite, "TEXT", Postgres, Value::InvalidText(vec![0xff])),
        (Sqlite, "REAL", Mysql, Value::Integer((1 << 53) + 1)),
    ] {
        assert_eq!(one(from, declared, to, value).unwrap_err().kind(), ErrorKind::Conflict, "{declared}");
    }
}

#[test]
fn names_that_meet_in_the_target_are_refused() {
    let named = |schema: &str, name: &str| {
        let mut topic = one_column(Dialect::Postgres, "text", false);
        (topic.table.schema, topic.table.name) = (Some(schema.into()), name.into());
        topic
    };
    let tables = [named("a", "b_c"), named("a_b", "c"), named("public", "d")];
    assert_eq!(target_name(Dialect::Postgres, &tables[0].table, Dialect::Mysql), (None, "a_b_c".into()));
    assert_eq!(target_name(Dialect::Postgres, &tables[2].table, Dialect::Sqlite), (None, "d".into()));
    assert_eq!(target_name(Dialect::Postgres, &tables[0].table, Dialect::Postgres).0.as_deref(), Some("a"));
    assert!(check_names(&tables, Dialect::Postgres).is_ok());
    let said = check_names(&tables, Dialect::Mysql).unwrap_err().to_string();
    assert!(said.contains("a.b_c") && said.contains("a_b.c"), "{said}");
    assert!(check_names(&[named("public", &"n".repeat(64))], Dialect::Postgres).is_err());
}
