//! Filters that narrow a scan before it reads: ranges of `_partition` and `_offset`.
//!
//! They only narrow; the filter itself stays above the scan. Offsets narrow neither the current rows, where an older
//! record must not come back because the newer one was not read, nor anything that a negation or an OR surrounds.

use datafusion::{
    logical_expr::{BinaryExpr, Expr, Operator},
    scalar::ScalarValue,
};

use super::{Form, Range};

/// Whether the filter narrows a scan of this form.
pub(super) fn narrows(filter: &Expr, form: Form) -> bool {
    bound(filter, form).is_some()
}

/// What is left of the ranges under the filters.
pub(super) fn narrow(ranges: &[Range], filters: &[Expr], form: Form) -> Vec<Range> {
    let mut ranges = ranges.to_vec();
    for (column, operator, value) in filters.iter().filter_map(|filter| bound(filter, form)) {
        let (low, high) = interval(operator, value);
        match column {
            Column::Partition => ranges.retain(|range| (low..high).contains(&i64::from(range.number))),
            Column::Offset => ranges.iter_mut().for_each(|range| {
                range.start = range.start.max(low);
                range.end = range.end.min(high);
            }),
        }
    }
    ranges.retain(|range| range.start < range.end);
    ranges
}

#[derive(Clone, Copy, PartialEq)]
enum Column {
    Partition,
    Offset,
}

/// The values that pass, from the first to before the last.
fn interval(operator: Operator, value: i64) -> (i64, i64) {
    let after = value.saturating_add(1);
    match operator {
        Operator::Eq => (value, after),
        Operator::Lt => (i64::MIN, value),
        Operator::LtEq => (i64::MIN, after),
        Operator::Gt => (after, i64::MAX),
        _ => (value, i64::MAX),
    }
}

fn bound(filter: &Expr, form: Form) -> Option<(Column, Operator, i64)> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = filter else { return None };
    let (column, operator, value) = match (column(left), literal(right)) {
        (Some(column), Some(value)) => (column, *op, value),
        _ => (column(right)?, op.swap()?, literal(left)?),
    };
    let known = matches!(operator, Operator::Eq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq);
    (known && (column == Column::Partition || !matches!(form, Form::Current | Form::Texts)))
        .then_some((column, operator, value))
}

fn column(expr: &Expr) -> Option<Column> {
    match expr {
        Expr::Column(column) if column.name == "_partition" => Some(Column::Partition),
        Expr::Column(column) if column.name == "_offset" => Some(Column::Offset),
        _ => None,
    }
}

fn literal(expr: &Expr) -> Option<i64> {
    match expr {
        Expr::Literal(ScalarValue::Int64(value), _) => *value,
        Expr::Literal(ScalarValue::Int32(value), _) => value.map(i64::from),
        _ => None,
    }
}
