//! Every type at its extremes, from each kind of database into each other, judged by the targets' own clients.

use std::{path::Path, sync::Arc};

use tidemill_connect::{
    ErrorKind,
    change::{Change, Column, Op, TableSchema, Value},
    connector::TopicChanges,
    converter::TopicSchema,
    endpoint::{Endpoint, Secret},
    translate::Translation,
    types::Dialect::{self, Mysql, Postgres as Pg, Sqlite},
};

use crate::servers::{Folder, MariaDb, PASSWORD, Postgres, SINK};

/// Stands for a value that must be refused.
const NO: &str = "<refused>";
/// Stands for a pair that is not tried.
const SAME: &str = "<not tried>";

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

/// From, the type, the value, and what psql, mariadb and sqlite3 (quoted) then show.
fn cases() -> Vec<(Dialect, &'static str, Value, [&'static str; 3])> {
    use Value::{Blob, Boolean, Integer, Real, Unsigned};
    vec![
        (Sqlite, "INTEGER", Integer(i64::MIN), ["-9223372036854775808", "-9223372036854775808", SAME]),
        (Sqlite, "BOOLEAN", Integer(1), ["1", "1", SAME]),
        (Sqlite, "INTEGER", text("abc"), [NO, NO, SAME]),
        (Sqlite, "REAL", Real(5e-324), ["5e-324", "5e-324", SAME]),
        (Sqlite, "REAL", Real(f64::MAX), ["1.7976931348623157e+308", "1.7976931348623157e308", SAME]),
        (Sqlite, "REAL", Real(f64::INFINITY), ["Infinity", NO, SAME]),
        (Sqlite, "DECIMAL(10,2)", Real(0.1), ["0.1", "0.1", SAME]),
        (Sqlite, "TEXT", text("žluť 🌊 'it\\'"), ["žluť 🌊 'it\\'", "žluť 🌊 'it\\'", SAME]),
        (Sqlite, "TEXT", text(""), ["", "", SAME]),
        (Sqlite, "TEXT", text("\\N"), ["\\N", "\\N", SAME]),
        (Sqlite, "TEXT", text("a\0b"), [NO, "a\0b", SAME]),
        (Sqlite, "TEXT", Value::InvalidText(vec![0xff]), [NO, NO, SAME]),
        (Sqlite, "DATE", Integer(20240101), ["20240101", "20240101", SAME]),
        (Sqlite, "BLOB", Blob(vec![0, 39, 92, 255]), ["00275cff", "00275CFF", SAME]),
        (Sqlite, "", Integer(7), ["7", "7", SAME]),
        (Pg, "smallint", Integer(-32768), ["-32768", "-32768", "-32768"]),
        (Pg, "bigint", Integer(i64::MAX), ["9223372036854775807", "9223372036854775807", "9223372036854775807"]),
        (Pg, "boolean", Boolean(true), ["true", "1", "1"]),
        (Pg, "real", Real(0.1), ["0.1", "0.1", "0.1"]),
        (Pg, "double precision", Real(5e-324), ["5e-324", "5e-324", "4.9406564584124654e-324"]),
        (Pg, "double precision", Real(f64::NAN), ["NaN", NO, NO]),
        (
            Pg,
            "numeric(65,30)",
            text("99999999999999999999999999999999999.999999999999999999999999999999"),
            ["99999999999999999999999999999999999.999999999999999999999999999999"; 3],
        ),
        (Pg, "numeric(10,2)", text("-12.50"), ["-12.50", "-12.50", "-12.5"]),
        (Pg, "numeric", text("NaN"), ["NaN", NO, "'NaN'"]),
        (
            Pg,
            "numeric",
            text("0.000000000000000000000000000001"),
            [
                "0.000000000000000000000000000001",
                "0.000000000000000000000000000001",
                "'0.000000000000000000000000000001'",
            ],
        ),
        (Pg, "text", text("123"), ["123", "123", "'123'"]),
        (Pg, "character varying(5)", text("🌊🌊🌊🌊🌊"), ["🌊🌊🌊🌊🌊", "🌊🌊🌊🌊🌊", "'🌊🌊🌊🌊🌊'"]),
        (Pg, "bytea", Blob(vec![0, 10, 39, 255]), ["000a27ff", "000A27FF", "X'000A27FF'"]),
        (Pg, "date", text("2024-02-29"), ["2024-02-29", "2024-02-29", "'2024-02-29'"]),
        (Pg, "date", text("0044-03-15 BC"), ["0044-03-15 BC", NO, "'0044-03-15 BC'"]),
        (Pg, "date", text("infinity"), ["infinity", NO, "'infinity'"]),
        (Pg, "time without time zone", text("24:00:00"), ["24:00:00", "24:00:00.000000", "'24:00:00'"]),
        (
            Pg,
            "timestamp without time zone",
            text("294276-12-31T23:59:59.999999"),
            ["294276-12-31 23:59:59.999999", NO, "'294276-12-31T23:59:59.999999'"],
        ),
        (
            Pg,
            "timestamp(3) with time zone",
            text("2024-02-29T13:04:05.25Z"),
            ["2024-02-29 13:04:05.25+00", "2024-02-29 13:04:05.250", "'2024-02-29T13:04:05.25Z'"],
        ),
        (
            Pg,
            "interval",
            text("1 mon 2 days 03:04:05"),
            ["1 mon 2 days 03:04:05", "1 mon 2 days 03:04:05", "'1 mon 2 days 03:04:05'"],
        ),
        (Pg, "jsonb", text("{\"a\": 1}"), ["{\"a\": 1}", "{\"a\": 1}", "'{\"a\": 1}'"]),
        (Pg, "json", text("1"), ["1", "1", "'1'"]),
        (
            Pg,
            "uuid",
            text("123e4567-e89b-12d3-a456-426614174000"),
            [
                "123e4567-e89b-12d3-a456-426614174000",
                "123e4567-e89b-12d3-a456-426614174000",
                "'123e4567-e89b-12d3-a456-426614174000'",
            ],
        ),
        (Pg, "integer[]", text("{1,2}"), ["{1,2}", "{1,2}", "'{1,2}'"]),
        (Pg, "mood", text("happy"), ["happy", "happy", "'happy'"]),
        (Mysql, "tinyint(1)", Integer(-1), ["-1", "-1", "-1"]),
        (Mysql, "int(10) unsigned", Integer(4294967295), ["4294967295"; 3]),
        (
            Mysql,
            "bigint(20) unsigned",
            Unsigned(u64::MAX),
            ["18446744073709551615", "18446744073709551615", "'18446744073709551615'"],
        ),
        (Mysql, "bigint(20) unsigned", Integer(5), ["5", "5", "5"]),
        (
            Mysql,
            "decimal(65,30)",
            text("-99999999999999999999999999999999999.999999999999999999999999999999"),
            ["-99999999999999999999999999999999999.999999999999999999999999999999"; 3],
        ),
        (Mysql, "decimal(10,2)", text("12.50"), ["12.50", "12.50", "12.5"]),
        (Mysql, "float", Real(0.1), ["0.1", "0.1", "0.1"]),
        (
            Mysql,
            "double",
            Real(f64::MIN),
            ["-1.7976931348623157e+308", "-1.7976931348623157e308", "-1.7976931348623157e+308"],
        ),
        (Mysql, "varchar(20)", text("a\0b"), [NO, "a\0b", SAME]),
        (Mysql, "varchar(20)", text("0x"), ["0x", "0x", "'0x'"]),
        (Mysql, "varbinary(20)", Blob(vec![]), ["", "", "X''"]),
        (Mysql, "date", text("0000-00-00"), [NO, "0000-00-00", "'0000-00-00'"]),
        (Mysql, "time(6)", text("-838:59:59"), ["-838:59:59", "-838:59:59.000000", "'-838:59:59'"]),
        (
            Mysql,
            "datetime(6)",
            text("9999-12-31T23:59:59.999999"),
            ["9999-12-31 23:59:59.999999", "9999-12-31 23:59:59.999999", "'9999-12-31T23:59:59.999999'"],
        ),
        (
            Mysql,
            "timestamp",
            text("2024-06-30T12:00:00Z"),
            ["2024-06-30 12:00:00+00", "2024-06-30 12:00:00", "'2024-06-30T12:00:00Z'"],
        ),
        (Mysql, "year(4)", Integer(2155), ["2155"; 3]),
        (Mysql, "enum('a','b')", text("b"), ["b", "b", "'b'"]),
        (Mysql, "json", text("{\"a\": 1}"), ["{\"a\": 1}", "{\"a\": 1}", "'{\"a\": 1}'"]),
        (
            Mysql,
            "uuid",
            text("123e4567-e89b-12d3-a456-426614174000"),
            [
                "123e4567-e89b-12d3-a456-426614174000",
                "123e4567-e89b-12d3-a456-426614174000",
                "'123e4567-e89b-12d3-a456-426614174000'",
            ],
        ),
    ]
}

fn schema(number: usize, from: Dialect, declared: &str) -> Arc<TopicSchema> {
    let column = |name: &str, declared: &str, key: Option<u32>| Column {
        name: name.into(),
        declared_type: declared.into(),
        not_null: key.is_some(),
        key,
    };
    let columns =
        vec![column("id", if from == Sqlite { "INTEGER" } else { "bigint" }, Some(0)), column("v", declared, None)];
    let space = (from == Pg).then(|| "public".to_owned());
    let table = TableSchema { schema: space, name: format!("t{number}"), columns };
    Arc::new(TopicSchema { id: number as u64 + 1, ..TopicSchema::draft("s", from, &table) })
}

#[tokio::test(flavor = "multi_thread")]
async fn values_arrive_as_they_are_or_are_refused() {
    let (postgres, maria, folder) = (Postgres::shared(), MariaDb::shared(), Folder::new());
    let (a, b, file) = (postgres.fresh_database(), maria.fresh_database(), folder.path("target.db"));
    let urls = [postgres.url(SINK, &a), maria.url(SINK, &b), format!("sqlite:{}", file.display())];
    let mut wrong = Vec::new();
    for (target, url) in urls.iter().enumerate() {
        let password = (target < 2).then(|| Secret::Plain(PASSWORD.into()));
        let connector = Endpoint::parse(url, password, Path::new("/")).unwrap().sink().unwrap();
        let mut sink = connector.open("s", "L").await.unwrap();
        for (number, (from, declared, value, shown)) in cases().into_iter().enumerate() {
            let expected = shown[target];
            if expected == SAME {
                continue;
            }
            let schema = schema(number, from, declared);
            let row = |id: i64| vec![Value::Integer(id), value.clone()];
            let change = |id: i64, op| Change {
                table: 0,
                op,
                key: vec![Value::Integer(id)],
                before: None,
                after: Some(row(id)),
                sequence: id,
            };
            // As a row of a copy, as one literal, and in a merge of many.
            let mut put = Ok(());
            for ids in [1..=2, 3..=3, 4..=100] {
                let op = if *ids.start() == 1 { Op::Read } else { Op::Update };
                let changes = ids.map(|id| change(id, op)).collect();
                let changes = vec![TopicChanges { schema: Arc::clone(&schema), changes }];
                put = put.and(sink.put(changes, vec![(schema.topic.clone(), 1)]).await);
            }
            let at = format!("{from} {declared} {value:?} in {url}");
            match put {
                Err(error) if expected == NO => {
                    if error.kind() != ErrorKind::Conflict || !error.to_string().contains("column v") {
                        wrong.push(format!("{at}: {error}"));
                    }
                    continue;
                }
                Err(error) => {
                    wrong.push(format!("{at}: {error}"));
                    continue;
                }
                Ok(()) => {}
            }
            // What `verify` would compare.
            let translation = Translation::new(&schema, connector.dialect());
            let wanted = translation.comparable(translation.row(row(5)).unwrap());
            let mut reader = connector.reader().await.unwrap();
            let found = match reader.find(translation.table(), &[vec![Value::Integer(5)]]).await {
                Ok(rows) => format!("{:?}", rows.into_iter().next().flatten().map(|row| translation.comparable(row))),
                Err(error) => error.to_string(),
            };
            if found != format!("{:?}", Some(&wanted)) {
                wrong.push(format!("{at}: read as {found}, not {wanted:?}"));
            }
            let table = format!("t{number}");
            let seen = match target {
                0 => {
                    let cell = if matches!(value, Value::Blob(_)) { "encode(v, 'hex')" } else { "v::text" };
                    let sql = format!(
                        "set timezone = 'UTC'; set extra_float_digits = 3; select distinct {cell} from {table} where (select count(*) from {table}) = 100"
                    );
                    postgres.query(&a, &sql)
                }
                1 => {
                    let cell = match value {
                        Value::Blob(_) => "hex(v)",
                        Value::Text(ref text) if text.contains('\0') => {
                            "if(v = concat('a', char(0), 'b'), 'nul', hex(v))"
                        }
                        _ => "v",
                    };
                    maria.query(&b, &format!("set time_zone = '+00:00'; select distinct {cell} from {table} where (select count(*) from {table}) = 100"))
                }
                _ => {
                    let conn = rusqlite::Connection::open(&file).unwrap();
                    let sql =
                        format!("select distinct quote(v) from {table} where (select count(*) from {table}) = 100");
                    let mut statement = conn.prepare(&sql).unwrap();
                    let rows = statement.query_map([], |row| Ok(vec![Some(row.get::<_, String>(0)?)])).unwrap();
                    rows.collect::<rusqlite::Result<Vec<_>>>().unwrap()
                }
            };
            let expected = if target == 1 && expected == "a\0b" { "nul" } else { expected };
            let quoted = format!("'{expected}'");
            let fits = |cell: &str| cell == expected || (target == 2 && cell == quoted);
            if !(seen.len() == 1 && seen[0][0].as_deref().is_some_and(fits)) {
                wrong.push(format!("{at}: {seen:?}, not {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Prints how many rows a second a sink takes; not a test of anything.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "speed: make bench"]
async fn rows_a_second() {
    const ROWS: i64 = 200_000;
    const BATCH: i64 = 28_000;
    let (postgres, maria) = (Postgres::options().fsync(true).start(), MariaDb::options().durable(true).start());
    let urls = [postgres.url(SINK, &postgres.fresh_database()), maria.url(SINK, &maria.fresh_database())];
    for url in urls {
        let connector = Endpoint::parse(&url, Some(Secret::Plain(PASSWORD.into())), Path::new("/")).unwrap();
        let mut sink = connector.sink().unwrap().open("s", "L").await.unwrap();
        let schema = schema(0, Pg, "text");
        for (what, op) in [("copy", Op::Read), ("update", Op::Update), ("delete", Op::Delete)] {
            let started = std::time::Instant::now();
            for first in (0..ROWS).step_by(BATCH as usize) {
                let changes = (first..(first + BATCH).min(ROWS)).map(|id| {
                    let row = vec![Value::Integer(id), text(&format!("{op:?} {id} {}", "x".repeat(110)))];
                    let after = (op != Op::Delete).then_some(row);
                    Change { table: 0, op, key: vec![Value::Integer(id)], before: None, after, sequence: id }
                });
                let changes = vec![TopicChanges { schema: Arc::clone(&schema), changes: changes.collect() }];
                sink.put(changes, vec![(schema.topic.clone(), first)]).await.unwrap();
            }
            let seconds = started.elapsed().as_secs_f64();
            println!(
                "{url}: {what} {ROWS} rows of 130 bytes, {BATCH} a batch, fsync on: {:.0} rows/s",
                ROWS as f64 / seconds
            );
        }
    }
}

/// Tables of other databases in a SQLite file: untold values, moved keys, new columns.
#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_target_keeps_untold_values_and_gets_new_columns() {
    let folder = Folder::new();
    let file = folder.path("target.db");
    let connector = Endpoint::parse(&format!("sqlite:{}", file.display()), None, Path::new("/")).unwrap();
    let mut sink = connector.sink().unwrap().open("s", "L").await.unwrap();
    let first = schema(0, Pg, "text");
    let change = |id: i64, op, value: Value, sequence| {
        let after = (op != Op::Delete).then(|| vec![Value::Integer(id), value]);
        Change { table: 0, op, key: vec![Value::Integer(id)], before: None, after, sequence }
    };
    let changes = vec![
        change(1, Op::Create, text("big"), 1),
        change(2, Op::Create, text("2"), 2),
        change(1, Op::Update, Value::Unchanged, 3),
        change(2, Op::Delete, Value::Null, 4),
        change(3, Op::Create, Value::Unchanged, 4),
    ];
    let changes = vec![TopicChanges { schema: Arc::clone(&first), changes }];
    sink.put(changes, vec![(first.topic.clone(), 5)]).await.unwrap();
    let mut wider = (*first).clone();
    wider.table.columns.push(Column { name: "n".into(), declared_type: "bigint".into(), not_null: true, key: None });
    let mut wider = TopicSchema { id: 9, copy: Some(first.copy_id()), ..TopicSchema::draft("s", Pg, &wider.table) };
    let row = vec![Value::Integer(4), text("v"), Value::Integer(7)];
    let changes = vec![Change { after: Some(row), ..change(4, Op::Create, Value::Null, 5) }];
    let changes = vec![TopicChanges { schema: Arc::new(wider.clone()), changes }];
    sink.put(changes, vec![(first.topic.clone(), 6)]).await.unwrap();
    let conn = rusqlite::Connection::open(&file).unwrap();
    let sql = "select group_concat(id || '|' || quote(v) || '|' || quote(n), ' ') from (select * from t0 order by id)";
    let rows: String = conn.query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(rows, "1|'big'|NULL 3|'2'|NULL 4|'v'|7");
    // What SQLite cannot change is refused, with the way out.
    wider.table.columns[1].declared_type = "bytea".into();
    let refused = TopicSchema { id: 10, copy: Some(first.copy_id()), ..TopicSchema::draft("s", Pg, &wider.table) };
    let changes = vec![TopicChanges { schema: Arc::new(refused), changes: Vec::new() }];
    let error = sink.put(changes, Vec::new()).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Conflict && error.to_string().contains("--recopy"), "{error}");
}
