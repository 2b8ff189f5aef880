//! The arguments of `TUMBLE`: by position, or by Flink's names `DATA`, `TIMECOL`, `SIZE`, `OFFSET`.

use std::time::Duration;

use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName, ObjectNamePart, TableFactor,
    TableFunctionArgs,
};
use tidemill_core::{Error, Result, suggest::nearest};
use tidemill_streams::window::Tumbling;

use super::{Call, at, interval::millis, place};
use crate::catalog::folded;

const NAMES: [&str; 4] = ["data", "timecol", "size", "offset"];
const MEANINGS: [&str; 4] = ["table", "time column", "size", "offset"];
const FORM: &str = "TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10 seconds')";

/// What `TUMBLE` is asked for.
#[derive(Debug)]
pub(crate) struct Tumble {
    /// The table, as FROM would have it.
    pub(crate) data: TableFactor,
    /// The column of the rows' times.
    pub(crate) time: Ident,
    pub(super) size_ms: i64,
    /// At least 0 and below the size.
    pub(super) offset_ms: i64,
}

impl Call {
    /// Reads the arguments.
    ///
    /// # Errors
    /// `Invalid` and `Unsupported` for what they are not, with their place.
    pub(crate) fn arguments(&self) -> Result<Tumble> {
        let [data, time, size, offset] = self.slots()?;
        let lacks = |i: usize| {
            let text = format!("TUMBLE lacks its {}; write: {FORM}{}", MEANINGS[i], self.position());
            Error::invalid(text)
        };
        let data = table_of(&data.ok_or_else(|| lacks(0))?)?;
        let time = column_of(&time.ok_or_else(|| lacks(1))?)?;
        let size = size.ok_or_else(|| lacks(2))?;
        let size_ms = millis(&size, "size")?;
        let windows = tumbling(size_ms, 0);
        windows.validate().map_err(|e| Error::new(e.kind(), format!("{e}{}", place(&size))))?;
        // Windows repeat: an offset is what is left of it after whole ones, also of a negative one.
        let offset_ms = offset.map_or(Ok(0), |offset| millis(&offset, "offset"))?.rem_euclid(windows.size_ms());
        Ok(Tumble { data, time, size_ms, offset_ms })
    }

    /// The arguments in the order of [`NAMES`].
    fn slots(&self) -> Result<[Option<Expr>; 4]> {
        let mut slots = [const { None }; 4];
        let mut named = false;
        for (i, argument) in self.args.iter().enumerate() {
            let (name, value) = parts(argument);
            let slot = match name {
                Some(name) => slot_of(name)?,
                None if named => return Err(fault("an argument without a name follows one with a name", argument)),
                None if i >= NAMES.len() => return Err(fault("TUMBLE takes at most 4 arguments", argument)),
                None => i,
            };
            named |= name.is_some();
            let Some(value) = value else {
                return Err(Error::invalid(format!("* is no argument of TUMBLE{}", self.position())));
            };
            if slots[slot].replace(value.clone()).is_some() {
                return Err(fault(&format!("the {} is given twice", MEANINGS[slot]), argument));
            }
        }
        Ok(slots)
    }
}

/// The windows; lengths below zero are zero, which their own check refuses.
pub(super) fn tumbling(size_ms: i64, offset_ms: i64) -> Tumbling {
    let duration = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    Tumbling::of(duration(size_ms)).offset(duration(offset_ms))
}

fn fault(text: &str, argument: &FunctionArg) -> Error {
    Error::invalid(format!("{text}{}", place(argument)))
}

fn parts(argument: &FunctionArg) -> (Option<&Ident>, Option<&Expr>) {
    let (name, value) = match argument {
        FunctionArg::Named { name, arg, .. } => (Some(name), arg),
        FunctionArg::ExprNamed { name: Expr::Identifier(name), arg, .. } => (Some(name), arg),
        FunctionArg::ExprNamed { arg, .. } | FunctionArg::Unnamed(arg) => (None, arg),
    };
    match value {
        FunctionArgExpr::Expr(value) => (name, Some(value)),
        _ => (name, None),
    }
}

fn slot_of(name: &Ident) -> Result<usize> {
    let text = folded(name);
    NAMES.iter().position(|known| *known == text).ok_or_else(|| {
        let hint = nearest(&text, NAMES).map(|near| format!("; nearest is {}", near.to_uppercase()));
        let at = at(name.span.start);
        Error::invalid(format!("TUMBLE has no argument {name}{}{at}", hint.unwrap_or_default()))
    })
}

/// The one argument of a function without frills.
fn only_argument<'e>(expr: &'e Expr, function: &str) -> Option<&'e Expr> {
    let Expr::Function(Function { name, args: FunctionArguments::List(list), .. }) = expr else { return None };
    let is_named = matches!(name.0.as_slice(), [part] if part.as_ident().is_some_and(|i| folded(i) == function));
    match list.args.as_slice() {
        [FunctionArg::Unnamed(FunctionArgExpr::Expr(only))] if is_named => Some(only),
        _ => None,
    }
}

fn table_of(expr: &Expr) -> Result<TableFactor> {
    let fault = || Error::invalid(format!("the table of TUMBLE is {expr}; write: TABLE t{}", place(expr)));
    let mut table = only_argument(expr, "table").ok_or_else(fault)?;
    while let Expr::Nested(inner) = table {
        table = inner;
    }
    match table {
        Expr::Identifier(name) => Ok(named(vec![name.clone()], None)),
        Expr::CompoundIdentifier(parts) => Ok(named(parts.clone(), None)),
        Expr::Subquery(query) => {
            Ok(TableFactor::Derived { lateral: false, subquery: query.clone(), alias: None, sample: None })
        }
        Expr::Function(Function { name, args: FunctionArguments::List(list), .. }) => {
            let parts = name.0.iter().filter_map(|part| part.as_ident().cloned()).collect();
            Ok(named(parts, Some(TableFunctionArgs { args: list.args.clone(), settings: None })))
        }
        _ => Err(fault()),
    }
}

fn named(parts: Vec<Ident>, args: Option<TableFunctionArgs>) -> TableFactor {
    TableFactor::Table {
        name: ObjectName(parts.into_iter().map(ObjectNamePart::Identifier).collect()),
        alias: None,
        args,
        with_hints: Vec::new(),
        version: None,
        with_ordinality: false,
        partitions: Vec::new(),
        json_path: None,
        sample: None,
        index_hints: Vec::new(),
    }
}

fn column_of(expr: &Expr) -> Result<Ident> {
    match only_argument(expr, "descriptor") {
        Some(Expr::Identifier(column)) => Ok(column.clone()),
        _ => {
            let text = "write one column without its table: DESCRIPTOR(ts)";
            Err(Error::invalid(format!("the time column of TUMBLE is {expr}; {text}{}", place(expr))))
        }
    }
}
