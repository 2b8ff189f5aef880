//! DataFusion's errors as this project's: the kind says what to do, a position says where in the text.

use datafusion::{arrow::error::ArrowError, common::SchemaError, error::DataFusionError};
use tidemill_core::{Error, ErrorKind, suggest::nearest};

/// Wraps an error of ours so that it passes through DataFusion's operators unchanged.
pub(crate) fn wrap(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// The error of ours that a failed plan or stream stands for.
pub(crate) fn from_datafusion(error: &DataFusionError) -> Error {
    let found = convert(error);
    let span = error.diagnostic().and_then(|diagnostic| diagnostic.span);
    match span.filter(|span| span.start.line > 0) {
        Some(span) => Error::new(found.kind(), format!("{found} ({}:{})", span.start.line, span.start.column)),
        None => found,
    }
}

fn convert(error: &DataFusionError) -> Error {
    use DataFusionError as E;
    let new = |kind, text: &str| Error::new(kind, lower_first(text));
    match error {
        E::Context(_, inner) | E::Diagnostic(_, inner) => convert(inner),
        E::Shared(inner) => convert(inner),
        E::Collection(errors) => match errors.first() {
            Some(first) => convert(first),
            None => Error::internal("an empty collection of errors"),
        },
        E::External(inner) => from_boxed(inner.as_ref()),
        E::ArrowError(inner, _) => from_arrow(inner),
        E::SQL(inner, _) => new(ErrorKind::Invalid, &inner.to_string()),
        E::SchemaError(inner, _) => new(ErrorKind::Invalid, &schema_fault(inner)),
        E::Plan(text) | E::Execution(text) | E::Configuration(text) => new(ErrorKind::Invalid, text),
        E::NotImplemented(text) => new(ErrorKind::Unsupported, text),
        E::ResourcesExhausted(text) => new(ErrorKind::Unavailable, text),
        E::IoError(inner) => new(ErrorKind::Unavailable, &inner.to_string()),
        other => Error::internal(other.strip_backtrace()),
    }
}

/// Errors cross Arrow's and DataFusion's boxes in either order.
fn from_boxed(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Error {
    if let Some(own) = error.downcast_ref::<Error>() {
        own.duplicate()
    } else if let Some(inner) = error.downcast_ref::<DataFusionError>() {
        convert(inner)
    } else if let Some(inner) = error.downcast_ref::<ArrowError>() {
        from_arrow(inner)
    } else {
        Error::internal(error.to_string())
    }
}

fn from_arrow(error: &ArrowError) -> Error {
    match error {
        ArrowError::ExternalError(inner) => from_boxed(inner.as_ref()),
        ArrowError::IoError(text, _) => Error::unavailable(lower_first(text)),
        ArrowError::MemoryError(text) => Error::unavailable(lower_first(text)),
        // Casts, divisions by zero, overflows: the statement asked for them.
        other => Error::invalid(lower_first(&other.to_string())),
    }
}

fn schema_fault(error: &SchemaError) -> String {
    let SchemaError::FieldNotFound { field, valid_fields } = error else { return error.to_string() };
    let mut text = format!("no column {:?}", field.name);
    if let Some(relation) = &field.relation {
        text += &format!(" in {:?}", relation.table());
    }
    if let Some(name) = nearest(&field.name, valid_fields.iter().map(|column| column.name.as_str())) {
        text += &format!("; nearest is {name:?}");
    }
    text
}

/// The parsers' and planners' sentences begin with a capital; ours do not. Acronyms keep theirs.
fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(first), Some(second)) if first.is_uppercase() && second.is_lowercase() => {
            first.to_lowercase().chain(text.chars().skip(1)).collect()
        }
        _ => text.to_owned(),
    }
}
