//! Keys: which group a row belongs to.
//!
//! A [`Keyer`] numbers the keys that it meets: 0, 1, 2, ... Aggregates then work on these dense numbers and never see a
//! key. Each window has a keyer of its own, so that keys are forgotten with their window.

use std::{
    borrow::Borrow,
    hash::{BuildHasher, Hash},
    marker::PhantomData,
};

use hashbrown::{DefaultHashBuilder, HashTable};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Error, Result,
    chunk::{Rows, Selection},
};

/// Numbers the keys of rows.
pub trait Keyer<D>: Send + 'static {
    /// Keys as rows of their own.
    type Keys: Rows;

    /// A keyer of the same rule that has met no key.
    #[must_use]
    fn fresh(&self) -> Self;

    /// Says that about `groups` keys are to be expected. A keyer may make room for them at once.
    fn expect(&mut self, _groups: usize) {}

    /// Number of keys met: all group numbers are below.
    fn len(&self) -> usize;

    /// Whether no key was met.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the group number of each selected row to `groups`.
    fn groups(&mut self, data: &D, rows: Selection<'_>, groups: &mut Vec<u32>);

    /// The keys of these groups.
    fn keys(&self, groups: &[u32]) -> Self::Keys;

    /// Writes a group's key as one JSON value. Equal keys give equal bytes: they name the key in the changelog and
    /// decide its key group.
    ///
    /// # Errors
    /// `Invalid` for a key that JSON cannot tell.
    fn encode(&self, group: u32, out: &mut Vec<u8>) -> Result<()>;

    /// The group of a key that [`Keyer::encode`] wrote, met now or before.
    ///
    /// # Errors
    /// `Corrupt` where it is no key of this kind.
    fn decode(&mut self, key: &str) -> Result<u32>;
}

/// What can be a key in a typed job.
pub trait Key: Hash + Eq + Clone + Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<K: Hash + Eq + Clone + Serialize + DeserializeOwned + Send + Sync + 'static> Key for K {}

/// Keys in the order they were met, and their numbers by hash.
struct Interned<K> {
    keys: Vec<K>,
    numbers: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl<K: Hash + Eq> Interned<K> {
    fn new(hasher: DefaultHashBuilder) -> Self {
        Self { keys: Vec::new(), numbers: HashTable::new(), hasher }
    }

    fn expect(&mut self, groups: usize)
    where
        K: Hash,
    {
        self.keys.reserve(groups);
        let (keys, hasher) = (&self.keys, &self.hasher);
        self.numbers.reserve(groups, |number| hasher.hash_one(&keys[*number as usize]));
    }

    #[inline(always)]
    fn number<Q>(&mut self, key: &Q, owned: impl FnOnce() -> K) -> u32
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        let keys = &self.keys;
        match self.numbers.find(hash, |number| keys[*number as usize].borrow() == key) {
            Some(number) => *number,
            None => self.intern(hash, owned()),
        }
    }

    #[cold]
    #[inline(never)]
    fn intern(&mut self, hash: u64, key: K) -> u32 {
        let number = u32::try_from(self.keys.len()).expect("a window has fewer than 2^32 keys");
        self.keys.push(key);
        let (keys, hasher) = (&self.keys, &self.hasher);
        self.numbers.insert_unique(hash, number, |number| hasher.hash_one(&keys[*number as usize]));
        number
    }

    fn encode(&self, group: u32, out: &mut Vec<u8>) -> Result<()>
    where
        K: Serialize,
    {
        serde_json::to_writer(out, &self.keys[group as usize])
            .map_err(|e| Error::invalid("a key cannot be written as JSON").with_source(e))
    }
}

fn decoded<K: DeserializeOwned>(key: &str) -> Result<K> {
    serde_json::from_str(key).map_err(|e| Error::corrupt(format!("{key} is no key of this step")).with_source(e))
}

fn taken<K: Clone>(keys: &[K], groups: &[u32]) -> Vec<K> {
    groups.iter().map(|group| keys[*group as usize].clone()).collect()
}

/// The key that a closure makes of a row.
pub struct KeyBy<T, K, F> {
    key: F,
    interned: Interned<K>,
    rows: PhantomData<fn(T)>,
}

impl<T, K: Key, F: Fn(&T) -> K> KeyBy<T, K, F> {
    /// Rows keyed by `key`.
    pub fn new(key: F) -> Self {
        Self { key, interned: Interned::new(DefaultHashBuilder::default()), rows: PhantomData }
    }
}

impl<T, K, F> Keyer<Vec<T>> for KeyBy<T, K, F>
where
    T: 'static,
    K: Key,
    F: Fn(&T) -> K + Clone + Send + 'static,
{
    type Keys = Vec<K>;

    fn fresh(&self) -> Self {
        Self { key: self.key.clone(), interned: Interned::new(self.interned.hasher.clone()), rows: PhantomData }
    }

    fn expect(&mut self, groups: usize) {
        self.interned.expect(groups);
    }

    fn len(&self) -> usize {
        self.interned.keys.len()
    }

    fn groups(&mut self, data: &Vec<T>, rows: Selection<'_>, groups: &mut Vec<u32>) {
        let (key, interned) = (&self.key, &mut self.interned);
        // Cloned only where it is new; a key that is found is dropped.
        let number = |interned: &mut Interned<K>, row: &T| {
            let key = key(row);
            interned.number(&key, || key.clone())
        };
        // Two loops, each with a body of its own: a shared closure would be a call per row.
        match rows {
            Selection::All(n) => groups.extend(data[..n].iter().map(|row| number(interned, row))),
            Selection::Rows(rows) => groups.extend(rows.iter().map(|row| number(interned, &data[*row as usize]))),
        }
    }

    fn keys(&self, groups: &[u32]) -> Vec<K> {
        taken(&self.interned.keys, groups)
    }

    fn encode(&self, group: u32, out: &mut Vec<u8>) -> Result<()> {
        self.interned.encode(group, out)
    }

    fn decode(&mut self, key: &str) -> Result<u32> {
        let key: K = decoded(key)?;
        Ok(self.interned.number(&key, || key.clone()))
    }
}

/// The key that a closure borrows from a row: it is copied only where a window meets it first.
pub struct KeyByRef<T, Q: ToOwned + ?Sized, F> {
    key: F,
    interned: Interned<Q::Owned>,
    rows: PhantomData<fn(T)>,
}

impl<T, Q, F> KeyByRef<T, Q, F>
where
    Q: ToOwned + Hash + Eq + ?Sized,
    Q::Owned: Key,
    F: for<'a> Fn(&'a T) -> &'a Q,
{
    /// Rows keyed by `key`.
    pub fn new(key: F) -> Self {
        Self { key, interned: Interned::new(DefaultHashBuilder::default()), rows: PhantomData }
    }
}

impl<T, Q, F> Keyer<Vec<T>> for KeyByRef<T, Q, F>
where
    T: 'static,
    Q: ToOwned + Hash + Eq + ?Sized + 'static,
    Q::Owned: Key + Borrow<Q>,
    F: for<'a> Fn(&'a T) -> &'a Q + Clone + Send + 'static,
{
    type Keys = Vec<Q::Owned>;

    fn fresh(&self) -> Self {
        Self { key: self.key.clone(), interned: Interned::new(self.interned.hasher.clone()), rows: PhantomData }
    }

    fn expect(&mut self, groups: usize) {
        self.interned.expect(groups);
    }

    fn len(&self) -> usize {
        self.interned.keys.len()
    }

    fn groups(&mut self, data: &Vec<T>, rows: Selection<'_>, groups: &mut Vec<u32>) {
        let (key, interned) = (&self.key, &mut self.interned);
        let number = |interned: &mut Interned<Q::Owned>, row: &T| {
            let key = key(row);
            interned.number(key, || key.to_owned())
        };
        match rows {
            Selection::All(n) => groups.extend(data[..n].iter().map(|row| number(interned, row))),
            Selection::Rows(rows) => groups.extend(rows.iter().map(|row| number(interned, &data[*row as usize]))),
        }
    }

    fn keys(&self, groups: &[u32]) -> Vec<Q::Owned> {
        taken(&self.interned.keys, groups)
    }

    fn encode(&self, group: u32, out: &mut Vec<u8>) -> Result<()> {
        self.interned.encode(group, out)
    }

    fn decode(&mut self, key: &str) -> Result<u32> {
        let key: Q::Owned = decoded(key)?;
        Ok(self.interned.number(key.borrow(), || key.clone()))
    }
}
