//! SQL over the topic of the orders gives what the job gives. It is asked as a user asks, through the binary: DataFusion is no
//! dependency of the examples, since cargo would build it before it runs one.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    checker::Totals,
    kill9::Campaign,
    program::{Folder, target},
};

/// The binary of this build. All tests of the workspace are built together with it; these alone are not.
fn tidemill() -> PathBuf {
    let program = target().join("tidemill");
    if !program.exists() {
        let profile = if target().ends_with("debug") { "dev" } else { "release" };
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "-p", "tidemill", "--profile", profile, "--target-dir"]).arg(target().parent().unwrap());
        println!("{} is not there: {build:?}", program.display());
        assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
    }
    program
}

fn totals(data_dir: &Path, window: &str) -> Totals {
    let query = format!(
        "SELECT CAST(window_start AS BIGINT), _key, count(*), \
         sum(CAST((regexp_match(_value, '\"cents\":([0-9]+)'))[1] AS BIGINT)) \
         FROM TUMBLE(TABLE orders, DESCRIPTOR(_timestamp), INTERVAL '{window}') GROUP BY window_start, _key"
    );
    let mut sql = Command::new(tidemill());
    sql.args(["sql", "-o", "csv", &query, "--data-dir"]).arg(data_dir).stdin(Stdio::null());
    for name in ["TIDEMILL__DATA_DIR", "TIDEMILL__SERVER"] {
        sql.env_remove(name);
    }
    let answer = sql.output().unwrap();
    assert!(answer.status.success(), "{query}: {}", String::from_utf8_lossy(&answer.stderr));
    let text = String::from_utf8(answer.stdout).unwrap();
    text.lines()
        .skip(1)
        .map(|line| {
            let [start, sku, orders, cents] = line.split(',').collect::<Vec<_>>().try_into().unwrap();
            ((start.parse().unwrap(), sku.to_owned()), (orders.parse().unwrap(), cents.parse().unwrap()))
        })
        .collect()
}

#[test]
fn sql_gives_what_the_job_gives() {
    let mut campaign = Campaign::new(6_000, 100, 1);
    for _ in 0..2 {
        campaign.round();
    }
    let (found, folder): (_, Folder) = campaign.finish();
    let answer = totals(folder.path(), "10 seconds");
    assert_eq!(answer, found.results());
    println!("{} groups are the same", answer.len());
    assert_ne!(totals(folder.path(), "9 seconds"), answer);
}
