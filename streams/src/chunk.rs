//! Rows on their way through a job: many at a time, with their event times beside them.
//!
//! Operators see chunks only. What a row is, an element of a `Vec` or a row of Arrow columns, is hidden behind [`Rows`].

/// Rows of any shape.
pub trait Rows: Clone + Send + 'static {
    /// Number of rows.
    fn len(&self) -> usize;

    /// Whether there is no row.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows at these positions, in this order.
    #[must_use]
    fn take(&self, rows: &[u32]) -> Self;

    /// The rows of all parts, in order. At least one part.
    fn concat(parts: Vec<Self>) -> Self;
}

impl<T: Clone + Send + 'static> Rows for Vec<T> {
    fn len(&self) -> usize {
        self.len()
    }

    fn take(&self, rows: &[u32]) -> Self {
        rows.iter().map(|row| self[*row as usize].clone()).collect()
    }

    fn concat(parts: Vec<Self>) -> Self {
        let mut parts = parts.into_iter();
        let mut all = parts.next().unwrap_or_default();
        parts.for_each(|mut part| all.append(&mut part));
        all
    }
}

/// Whether a row comes or goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// The row is added.
    Insert,
    /// A row that was added before is taken back.
    Delete,
}

/// Rows with the time of each. At most `u32::MAX` rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk<D> {
    /// Event time of each row, milliseconds since 1970-01-01 UTC.
    pub time: Vec<i64>,
    /// What each row does; `None`: all are inserts.
    pub op: Option<Vec<Op>>,
    /// The rows.
    pub data: D,
}

impl<D: Rows> Chunk<D> {
    /// Inserts of `data` at these times.
    pub fn inserts(time: Vec<i64>, data: D) -> Self {
        Self { time, op: None, data }
    }

    /// The rows at these positions.
    #[must_use]
    pub fn take(&self, rows: &[u32]) -> Self {
        let op = self.op.as_ref().map(|op| rows.iter().map(|row| op[*row as usize]).collect());
        let time = rows.iter().map(|row| self.time[*row as usize]).collect();
        Self { time, op, data: self.data.take(rows) }
    }
}

/// Some rows of a chunk: all, or those at the listed positions. Lets an operator work on a part without a copy.
#[derive(Debug, Clone, Copy)]
pub enum Selection<'a> {
    /// The rows `0..n`.
    All(usize),
    /// The rows at these positions.
    Rows(&'a [u32]),
}

impl Selection<'_> {
    /// Number of rows selected.
    pub fn len(&self) -> usize {
        match self {
            Self::All(n) => *n,
            Self::Rows(rows) => rows.len(),
        }
    }

    /// Whether no row is selected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `f` with each selected row's position, in order. Two plain loops: the compiler can unroll both.
    #[inline]
    pub fn for_each(self, mut f: impl FnMut(usize)) {
        match self {
            Self::All(n) => (0..n).for_each(f),
            Self::Rows(rows) => rows.iter().for_each(|row| f(*row as usize)),
        }
    }
}
