//! The demo's shop: a small SQLite database and a program that writes to it, knowing nothing of Tidemill.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use rusqlite::{Connection, params};
use tidemill_core::clock::Clock;

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT);
    CREATE TABLE products (sku TEXT PRIMARY KEY, title TEXT NOT NULL, price_cents INTEGER NOT NULL);
    CREATE TABLE orders (
        id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL, sku TEXT NOT NULL,
        quantity INTEGER NOT NULL, cents INTEGER NOT NULL, ordered_at INTEGER NOT NULL
    );";
const CITIES: [&str; 5] = ["Lisbon", "Turku", "Kyoto", "Recife", "Galway"];
const PRODUCTS: [(&str, &str, i64); 5] = [
    ("TEA-01", "Green tea", 450),
    ("TEA-02", "Black tea", 390),
    ("CUP-01", "Stoneware cup", 1200),
    ("POT-01", "Iron teapot", 4800),
    ("TIN-01", "Tea tin", 725),
];
const PAUSE: Duration = Duration::from_millis(10);
/// Orders in one transaction, at most.
const BASKET: u64 = 4;

/// A product's title.
pub fn title_of(sku: &str) -> &str {
    PRODUCTS.iter().find(|product| product.0 == sku).map_or(sku, |product| product.1)
}

/// What the writer has committed.
#[derive(Debug, Default)]
pub struct Written {
    pub inserts: AtomicU64,
    pub updates: AtomicU64,
    pub deletes: AtomicU64,
}

impl Written {
    pub fn counts(&self) -> (u64, u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.inserts), read(&self.updates), read(&self.deletes))
    }
}

/// Makes the shop with its first rows.
pub fn create(path: &Path) -> rusqlite::Result<()> {
    let mut conn = Connection::open(path)?;
    conn.execute_batch(SCHEMA)?;
    let tx = conn.transaction()?;
    for (sku, title, price_cents) in PRODUCTS {
        tx.execute("INSERT INTO products VALUES (?1, ?2, ?3)", params![sku, title, price_cents])?;
    }
    for id in 1..=200usize {
        let city = CITIES[id % CITIES.len()];
        tx.execute("INSERT INTO customers VALUES (?1, ?2, ?3)", params![id as i64, format!("Customer {id}"), city])?;
    }
    tx.commit()
}

/// Writes to the shop until told to stop: each round some orders, now and then a changed customer or price, and a customer
/// who comes and goes.
pub fn write(path: &Path, clock: &dyn Clock, written: &Written, stop: &AtomicBool) -> rusqlite::Result<()> {
    let mut conn = Connection::open(path)?;
    conn.busy_timeout(Duration::from_secs(5))?;
    let mut round = 0u64;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let (inserts, updates, deletes) = write_round(&mut conn, round, clock.now().0)?;
        written.inserts.fetch_add(inserts, Ordering::Relaxed);
        written.updates.fetch_add(updates, Ordering::Relaxed);
        written.deletes.fetch_add(deletes, Ordering::Relaxed);
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// A fixed sequence, well mixed: the demo looks alive and is the same every time.
fn mixed(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33
}

fn write_round(conn: &mut Connection, round: u64, now_ms: i64) -> rusqlite::Result<(u64, u64, u64)> {
    let tx = conn.transaction()?;
    let (mut inserts, mut updates, mut deletes) = (0, 0, 0);
    let luck = mixed(round);
    for item in 0..luck % BASKET + 1 {
        let luck = mixed(round * BASKET + item);
        let (sku, customer) = (PRODUCTS[(luck % 5) as usize].0, (luck / 5 % 200 + 1) as i64);
        inserts += tx.execute(
            "INSERT INTO orders (customer_id, sku, quantity, cents, ordered_at)
             SELECT ?1, sku, ?2, ?2 * price_cents, ?3 FROM products WHERE sku = ?4",
            params![customer, (luck % 3 + 1) as i64, now_ms, sku],
        )?;
    }
    let (sku, customer) = (PRODUCTS[(luck % 5) as usize].0, (luck % 200 + 1) as i64);
    if round.is_multiple_of(4) {
        let city = CITIES[(luck / 7 % 5) as usize];
        updates += tx.execute("UPDATE customers SET city = ?1 WHERE id = ?2", params![city, customer])?;
    }
    if round.is_multiple_of(10) {
        // Prices go up and down, and stay what a tea shop asks.
        let change = if luck.is_multiple_of(2) { 5 } else { -5 };
        updates += tx.execute(
            "UPDATE products SET price_cents = max(price_cents + ?1, 100) WHERE sku = ?2",
            params![change, sku],
        )?;
    }
    if round.is_multiple_of(8) {
        inserts += tx.execute("INSERT INTO customers (name) VALUES ('Passer-by')", [])?;
    }
    if round % 8 == 5 {
        deletes += tx.execute("DELETE FROM customers WHERE name = 'Passer-by'", [])?;
    }
    tx.commit()?;
    Ok((inserts as u64, updates as u64, deletes as u64))
}

/// When the newest order of a database was made, milliseconds since 1970 UTC; `None` where there is none yet.
pub fn newest_order(conn: &Connection) -> Option<i64> {
    conn.query_row("SELECT ordered_at FROM orders ORDER BY id DESC LIMIT 1", [], |row| row.get(0)).ok()
}
