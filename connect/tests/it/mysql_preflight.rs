//! What MariaDB's preflight finds, and that its cures cure.

use tidemill_connect::{
    ErrorKind,
    connector::{Finding, Level, SourceConnector},
};

use super::mysql_source::Bench;
use crate::servers::{ADMIN, CDC, MariaDb};

async fn findings(bench: &Bench, once: bool) -> Vec<Finding> {
    let tables = bench.endpoint(ADMIN).tables(&["*".into()]).await.unwrap();
    bench.endpoint(CDC).preflight("s", "", &tables, once).await.unwrap()
}

/// What hinders.
async fn refused(bench: &Bench, once: bool) -> Vec<Finding> {
    findings(bench, once).await.into_iter().filter(|finding| finding.level == Level::Refuse).collect()
}

/// The one thing that hinders is cured by what it says.
async fn cured(bench: &Bench, fault: &str, subject: &str, fill: &str) {
    bench.exec(fault);
    let found = refused(bench, false).await;
    let [finding] = &found[..] else { panic!("{fault}: {found:?}") };
    assert!(finding.subject == subject && !finding.ok, "{finding:?}");
    let cure = finding.cure.as_deref().unwrap_or_else(|| panic!("{finding:?}"));
    let typed = cure.split(", and have").next().unwrap().replace("(...)", fill);
    bench.exec(&typed);
    let left = refused(bench, false).await;
    assert!(left.is_empty(), "{typed}: {left:?}");
}

#[tokio::test]
async fn each_finding_is_cured_by_what_it_says() {
    let bench = Bench::new("create table a (id int primary key, v varchar(20) not null)");
    assert!(refused(&bench, false).await.is_empty());
    cured(&bench, "set global binlog_format = 'STATEMENT'", "binlog_format", "").await;
    cured(&bench, "set global binlog_format = 'MIXED'", "binlog_format", "").await;
    cured(&bench, "set global binlog_row_image = 'MINIMAL'", "binlog_row_image", "").await;
    cured(&bench, "revoke replication slave on *.* from cdc", "REPLICATION SLAVE", "").await;
    cured(&bench, "revoke binlog monitor on *.* from cdc", "BINLOG MONITOR", "").await;
    // Without any right in it the database itself is closed.
    bench.exec("create table b (id int primary key); grant select on b to cdc");
    cured(&bench, "revoke select on *.* from cdc", "shop.a", "").await;
    bench.exec("revoke select on a from cdc; grant select (id) on a to cdc");
    cured(&bench, "select 1", "shop.a", "").await;
    cured(&bench, "alter table a engine = myisam", "shop.a", "").await;
    cured(&bench, "alter table a drop primary key", "shop.a", "(id)").await;
    cured(&bench, "alter table a add w text character set big5", "shop.a", "").await;
    // What only a person can mend.
    for (fault, undone) in [
        ("add c text compressed", "drop c"),
        ("add e enum('x') not null, drop primary key, add primary key (e)", "drop primary key, add primary key (id)"),
    ] {
        bench.exec(&format!("alter table a {fault}"));
        let found = refused(&bench, false).await;
        assert!(found.len() == 1 && found[0].subject == "shop.a" && found[0].cure.is_none(), "{found:?}");
        bench.exec(&format!("alter table a {undone}"));
        assert!(refused(&bench, false).await.is_empty());
    }
}

#[tokio::test]
async fn without_a_binlog_only_a_copy_can_be_made() {
    let server = MariaDb::options().unset("log_bin").set("binlog_row_metadata", "NO_LOG");
    let mut bench = Bench::on(server.start(), "create table a (id int primary key)");
    let found = refused(&bench, false).await;
    let cure = found[0].cure.as_deref().unwrap();
    assert!(found.len() == 1 && found[0].subject == "log_bin" && cure.contains("[mysqld]"), "{found:?}");
    assert!(refused(&bench, true).await.is_empty());
    let warned = findings(&bench, false).await.into_iter().find(|found| found.level == Level::Warn).unwrap();
    assert_eq!(warned.cure.as_deref(), Some("SET GLOBAL binlog_row_metadata = 'FULL'"));
    let error = bench.open().await.err().unwrap();
    assert!(error.to_string().contains("log_bin"), "{error}");
    bench.server.set("log_bin", "binlog");
    bench.server.restart();
    assert!(refused(&bench, false).await.is_empty());
    bench.exec("revoke select on *.* from cdc");
    let tables = bench.endpoint(ADMIN).tables(&["*".into()]).await.unwrap();
    let error = bench.endpoint(CDC).preflight("s", "", &tables, true).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Denied && error.to_string().contains("'cdc'@'%' to database 'shop'"), "{error}");
}
