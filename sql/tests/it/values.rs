//! Values at the edges of their types, and values that do not fit.

use tidemill_connect::change::Value;
use tidemill_sql::{ErrorKind, Format, Session};

use crate::{
    csv, error,
    log::Log,
    music::{TRACK, integer, string},
    session, text,
};

fn odd() -> Session {
    let mut log = Log::default();
    let columns = [
        ("id", "INTEGER", true, Some(0)),
        ("big", "BIGINT", false, None),
        ("real", "REAL", false, None),
        ("data", "BLOB", false, None),
        ("any", "", false, None),
        ("Sp ace \"q\"", "TEXT", false, None),
    ];
    let schema = log.table("s", "odd", 1, &columns);
    let real = Value::Real;
    let rows = vec![
        vec![
            integer(1),
            integer(i64::MAX),
            real(f64::INFINITY),
            Value::Blob(vec![0, 255]),
            integer(5),
            string("a\"b,\nc"),
        ],
        vec![integer(2), integer(i64::MIN), real(-0.0), Value::Blob(vec![]), real(1.5), string("")],
        vec![integer(3), Value::Null, real(5e-324), Value::Null, Value::Null, Value::Null],
        vec![
            integer(4),
            integer(0),
            real(f64::NEG_INFINITY),
            Value::Null,
            Value::InvalidText(vec![0xc3]),
            string("ä\0\u{1F300}"),
        ],
        vec![integer(5), integer(-1), integer(7), Value::Null, string("{\"$blob\":\"AA==\"}"), string("{}")],
        vec![integer(6), integer(1), real(0.1 + 0.2), Value::Null, Value::Blob(vec![1]), string("\\x41")],
    ];
    log.rows(&schema, rows);
    session(log)
}

#[tokio::test(flavor = "multi_thread")]
async fn values_survive() {
    let session = odd();
    let csv = csv(&session, "select id, big, real, data, any from odd order by id").await;
    let expected = "id,big,real,data,any\n\
        1,9223372036854775807,Infinity,\\x00ff,5\n\
        2,-9223372036854775808,-0.0,\\x,1.5\n\
        3,,5e-324,,\n\
        4,0,-Infinity,,\\xc3\n\
        5,-1,7.0,,\"{\"\"$blob\"\":\"\"AA==\"\"}\"\n\
        6,1,0.30000000000000004,,\\x01\n";
    assert_eq!(csv, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_formats_write_odd_values() {
    let session = odd();
    let run = async |format| {
        let sql = "select id, real, data, \"Sp ace \"\"q\"\"\", _timestamp from odd where id in (1, 3, 4) order by id";
        text(session.query(sql).await.expect("plans"), format).await.expect("runs")
    };
    let jsonl = r#"{"id":1,"real":"Infinity","data":"\\x00ff","Sp ace \"q\"":"a\"b,\nc","_timestamp":"1970-01-01T00:00:00Z"}
{"id":3,"real":5e-324,"data":null,"Sp ace \"q\"":null,"_timestamp":"1970-01-01T00:00:00Z"}
{"id":4,"real":"-Infinity","data":null,"Sp ace \"q\"":"ä\u0000🌀","_timestamp":"1970-01-01T00:00:00Z"}
"#;
    assert_eq!(run(Format::Jsonl).await, jsonl);
    let array = format!("[\n{}\n]\n", jsonl.trim_end().replace("}\n{", "},\n{"));
    assert_eq!(run(Format::Json).await, array);
    let csv = "id,real,data,\"Sp ace \"\"q\"\"\",_timestamp\n1,Infinity,\\x00ff,\"a\"\"b,\nc\",1970-01-01T00:00:00Z\n\
               3,5e-324,,,1970-01-01T00:00:00Z\n4,-Infinity,,ä\0🌀,1970-01-01T00:00:00Z\n";
    assert_eq!(run(Format::Csv).await, csv);
    let table = " id |      real | data   | Sp ace \"q\" | _timestamp
----+-----------+--------+------------+----------------------
  1 |  Infinity | \\x00ff | a\"b,\\nc    | 1970-01-01T00:00:00Z
  3 |    5e-324 | NULL   | NULL       | 1970-01-01T00:00:00Z
  4 | -Infinity | NULL   | ä\\u{0}🌀    | 1970-01-01T00:00:00Z
(3 rows)
";
    assert_eq!(run(Format::Table).await, table);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_does_not_fit_fails_the_query_with_its_place() {
    let row = |name: Value, album: Value, price: Value| vec![integer(7), name, album, integer(1), price];
    let one = || Value::Real(1.0);
    let cases = [
        (
            row(string("x"), Value::Null, string("n/a")),
            "UnitPrice",
            "\"UnitPrice\" is text \"n/a\", column is DOUBLE; ",
        ),
        (row(integer(5), Value::Null, one()), "Name", "\"Name\" is integer 5, column is TEXT; "),
        (row(Value::Null, Value::Null, one()), "Name", "\"Name\" is NULL, column is NOT NULL; "),
        (row(Value::Blob(vec![1]), Value::Null, one()), "Name", "\"Name\" is a blob of 1 bytes, column is TEXT; "),
        (
            row(Value::InvalidText(vec![255]), Value::Null, one()),
            "Name",
            "\"Name\" is text that is not UTF-8, \"\\\\xff\", column is TEXT; ",
        ),
        (row(string("x"), Value::Real(1.5), one()), "AlbumId", "\"AlbumId\" is real 1.5, column is BIGINT; "),
        (row(string("x"), Value::Real(f64::INFINITY), one()), "AlbumId", "\"AlbumId\" is real inf, column is BIGINT; "),
    ];
    for (row, column, message) in cases {
        let mut log = Log::default();
        let schema = log.table("chinook", "Track", 1, TRACK);
        log.rows(&schema, [vec![integer(1), string("a"), integer(1), integer(1), one()], row]);
        let session = session(log);
        let cast = |to: &str| format!("try_cast(\"{column}\" as {to}) from texts_of(chinook.\"Track\")");
        let as_text = match column {
            "UnitPrice" => cast("DOUBLE"),
            "AlbumId" => cast("BIGINT"),
            _ => format!("\"{column}\" from texts_of(chinook.\"Track\")"),
        };
        let as_it_is = "_offset, _value from records_of(chinook.\"Track\")".to_owned();
        for (from, reads) in [("Track", as_text), ("changes_of(Track)", as_it_is)] {
            let e = error(&session, &format!("select * from {from}")).await;
            assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
            let expected = format!(
                "chinook.Track[0]@1: {message}correct the row {{\"TrackId\":7}} in the source, or leave \"{column}\" out, \
                 or read it as it is: select {reads}"
            );
            assert_eq!(e.to_string(), expected);
            // What it says works.
            assert_eq!(csv(&session, &format!("select {reads}")).await.lines().count(), 3, "{reads}");
        }
        // Whoever does not ask for the column is not in its way.
        assert_eq!(csv(&session, "select count(*), sum(Milliseconds) as s from Track").await, "count(*),s\n2,2\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misfit_that_was_corrected_is_history() {
    let mut log = Log::default();
    let schema = log.table("chinook", "Track", 1, TRACK);
    let row = |price: Value| vec![integer(1), string("a"), integer(1), integer(1), price];
    log.rows(&schema, [row(string("n/a"))]);
    log.rows(&schema, [row(Value::Real(2.0))]);
    let session = session(log);
    assert_eq!(csv(&session, "select UnitPrice from Track").await, "UnitPrice\n2.0\n");
    assert_eq!(error(&session, "select UnitPrice from changes_of(Track)").await.kind(), ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_of_a_table_show_every_value_and_try_cast_reads_the_rest() {
    let mut log = Log::default();
    let schema = log.table("chinook", "Track", 1, TRACK);
    let row = |id: i64, name: Value, price: Value| vec![integer(id), name, integer(1), integer(1), price];
    log.rows(&schema, [row(1, string("a"), Value::Real(0.5)), row(2, Value::Null, string("n/a"))]);
    log.rows(&schema, [row(3, Value::Blob(vec![1]), integer(2)), row(1, string("b"), Value::Real(1.5))]);
    let session = session(log);
    let texts = csv(&session, "select TrackId, Name, UnitPrice, _offset from texts_of(Track) order by TrackId").await;
    assert_eq!(texts, "TrackId,Name,UnitPrice,_offset\n1,b,1.5,3\n2,,n/a,1\n3,\\x01,2,2\n");
    let sum = "select sum(try_cast(UnitPrice as double)) as s, count(*) as n from texts_of(chinook.Track) as t";
    assert_eq!(csv(&session, sum).await, "s,n\n3.5,3\n");
    let odd = "select TrackId, UnitPrice from texts_of(Track) where try_cast(UnitPrice as double) is null";
    assert_eq!(csv(&session, odd).await, "TrackId,UnitPrice\n2,n/a\n");
    let first = "select _offset, _key from records_of(Track) where _offset < 2 order by _offset";
    assert_eq!(csv(&session, first).await, "_offset,_key\n0,\"{\"\"TrackId\"\":1}\"\n1,\"{\"\"TrackId\"\":2}\"\n");
    let value = csv(&session, "select _value from records_of(Track) where _offset = 1").await;
    assert!(value.contains("n/a"), "{value}");
    assert!(
        error(&session, "select * from texts_of(1)").await.to_string().contains("texts_of takes the name of one table")
    );
}
