//! Whole queries, answered as SQLite answers them.

use crate::music::{Music, compare, compare_with};

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_sqlites() {
    let (session, sqlite) = Music::new().session();
    let queries = [
        r#"SELECT count(*) AS n FROM "Track""#,
        r#"SELECT * FROM "Track""#,
        r#"SELECT * FROM "Artist" ORDER BY "ArtistId""#,
        r#"SELECT "Name", "UnitPrice" FROM "Track" WHERE "UnitPrice" > 1.5 AND "Name" LIKE 'Track 1%'"#,
        r#"SELECT sum("UnitPrice"), min("Milliseconds"), max("Name"), avg("Milliseconds") FROM "Track""#,
        r#"SELECT count("AlbumId"), count(DISTINCT "AlbumId"), count(*) FROM "Track""#,
        r#"SELECT "AlbumId", count(*), sum("Milliseconds") FROM "Track" GROUP BY "AlbumId" HAVING count(*) > 5"#,
        r#"SELECT t."Name", a."Title", r."Name" FROM "Track" t JOIN "Album" a ON a."AlbumId" = t."AlbumId"
           JOIN "Artist" r ON r."ArtistId" = a."ArtistId" WHERE t."TrackId" < 30"#,
        r#"SELECT t."TrackId", a."Title" FROM "Track" t LEFT JOIN "Album" a USING ("AlbumId") ORDER BY t."TrackId""#,
        r#"SELECT * FROM "Album" JOIN "Artist" USING ("ArtistId")"#,
        r#"SELECT r."Name" FROM "Artist" r WHERE NOT EXISTS (SELECT 1 FROM "Album" a WHERE a."ArtistId" = r."ArtistId")"#,
        r#"SELECT "Name" FROM "Track" WHERE "AlbumId" IN (SELECT "AlbumId" FROM "Album" WHERE "Title" = 'Best of')"#,
        r#"WITH long AS (SELECT * FROM "Track" WHERE "Milliseconds" > 30000), n AS (SELECT count(*) AS c FROM long)
           SELECT long."Name", n.c FROM long, n ORDER BY long."Name""#,
        r#"SELECT "TrackId", row_number() OVER (PARTITION BY "AlbumId" ORDER BY "Milliseconds" DESC, "TrackId") AS rn
           FROM "Track""#,
        r#"SELECT "TrackId", sum("Milliseconds") OVER (ORDER BY "TrackId" ROWS BETWEEN 2 PRECEDING AND CURRENT ROW)
           FROM "Track" ORDER BY "TrackId" LIMIT 10 OFFSET 5"#,
        r#"SELECT "Name" FROM "Artist" UNION SELECT "Title" FROM "Album""#,
        r#"SELECT "ArtistId" FROM "Artist" EXCEPT SELECT "ArtistId" FROM "Album""#,
        r#"SELECT "ArtistId" FROM "Artist" INTERSECT SELECT "AlbumId" FROM "Track""#,
        r#"SELECT "select", sum("Quantity") FROM "Order Details" GROUP BY "select""#,
        r#"SELECT CASE WHEN "AlbumId" IS NULL THEN 'none' ELSE 'some' END AS k, count(*) FROM "Track" GROUP BY 1 ORDER BY 1"#,
        r#"SELECT upper("Name") || '!' AS loud FROM "Track" ORDER BY loud LIMIT 7"#,
        r#"SELECT a."Title", (SELECT count(*) FROM "Track" t WHERE t."AlbumId" = a."AlbumId") AS n FROM "Album" a ORDER BY 2, 1"#,
        r#"WITH RECURSIVE up(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < 5) SELECT n FROM up ORDER BY n"#,
        "VALUES (1, 'a'), (2, NULL)",
    ];
    for sql in queries {
        assert!(compare(&session, &sqlite, sql).await > 0, "{sql}: no rows prove nothing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unquoted_names_answer_as_quoted_ones() {
    let (session, sqlite) = Music::new().session();
    // SQLite ignores case in names, so that it reads both.
    let queries = [
        "select count(*) from Track",
        "select NAME, unitprice from track where TrackId < 9",
        "select t.Name, a.Title from Track t join Album as a on a.AlbumId = t.AlbumId where t.Milliseconds > 2000",
        "select AlbumId, count(*) as N from Track group by AlbumId having count(*) > 2 order by N, AlbumId",
        "select upper(Name) as name from Track order by name",
        "select 0 - TrackId as trackid from Track order by trackid",
        "select Title as Heading from Album order by Heading",
        "select x.Name from (select Name, TrackId as Id from Track) x where x.Id < 5",
        "with T as (select TrackId, Name from Track) select Name from T where TrackId > 50",
        "select Track.Name from Track where Track.TrackId = 1",
        "select Name from Artist r where exists (select * from Album where Album.ArtistId = r.ArtistId)",
        "select * from Album join Artist using (ArtistId)",
        "select Name, row_number() over (partition by AlbumId order by Milliseconds, TrackId) from Track",
        "select sum(Milliseconds) over w as s from Track window w as (order by TrackId) order by trackid",
        "select Name from Track union all select Title from Album order by name",
    ];
    for sql in queries {
        assert!(compare(&session, &sqlite, sql).await > 0, "{sql}: no rows prove nothing");
    }
    compare_with(&session, &sqlite, "select count(*) from chinook.Track", "select count(*) from Track").await;
    compare_with(&session, &sqlite, "select chinook.track.NAME from Chinook.Track", "select Name from Track").await;
    let distinct = "select distinct on (AlbumId) AlbumId, TrackId from Track order by AlbumId nulls first, TrackId";
    let theirs = "select AlbumId, min(TrackId) from Track group by AlbumId order by AlbumId nulls first";
    compare_with(&session, &sqlite, distinct, theirs).await;
}
