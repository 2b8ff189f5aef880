//! A column's declared type, as `COLUMN_TYPE` of the information schema writes it.

/// The parts of a declared type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// The type's name in small letters.
    pub base: String,
    /// The numbers in its brackets.
    pub numbers: Vec<u32>,
    /// The members of an ENUM or SET.
    pub members: Vec<String>,
    /// Whether it has no sign.
    pub unsigned: bool,
    /// Whether the server keeps it compressed.
    pub compressed: bool,
}

/// What values of a type have in common in the binlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Integer,
    Real,
    Decimal,
    Bit,
    Year,
    Date,
    Time,
    Datetime,
    Timestamp,
    /// CHAR, VARCHAR, TEXT and their binary twins, JSON, UUID and addresses.
    Bytes,
    Enum,
    Set,
    Json,
    Geometry,
}

impl Declared {
    /// Reads a type.
    pub fn parse(text: &str) -> Self {
        let lower = text.to_ascii_lowercase();
        let base_end = lower.find(['(', ' ']).unwrap_or(lower.len());
        let base = lower[..base_end].to_owned();
        let is_list = matches!(base.as_str(), "enum" | "set");
        let inside = text[base_end..].strip_prefix('(');
        let (mut numbers, mut members) = (Vec::new(), Vec::new());
        if is_list {
            members = inside.map(quoted).unwrap_or_default();
        } else if let Some((inside, _)) = inside.and_then(|inside| inside.split_once(')')) {
            numbers = inside.split(',').filter_map(|number| number.trim().parse().ok()).collect();
        }
        let words = if is_list { "" } else { &lower[base_end..] };
        let unsigned = words.contains("unsigned");
        Self { base, numbers, members, unsigned, compressed: words.contains(" compressed") }
    }

    /// Its family; `None` for a type that is not known.
    pub fn family(&self) -> Option<Family> {
        Some(match self.base.as_str() {
            "tinyint" | "smallint" | "mediumint" | "int" | "bigint" => Family::Integer,
            "float" | "double" => Family::Real,
            "decimal" => Family::Decimal,
            "bit" => Family::Bit,
            "year" => Family::Year,
            "date" => Family::Date,
            "time" => Family::Time,
            "datetime" => Family::Datetime,
            "timestamp" => Family::Timestamp,
            "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" | "binary" | "varbinary"
            | "tinyblob" | "blob" | "mediumblob" | "longblob" | "uuid" | "inet4" | "inet6" => Family::Bytes,
            "json" => Family::Json,
            "enum" => Family::Enum,
            "set" => Family::Set,
            "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring" | "multipolygon"
            | "geometrycollection" | "geomcollection" => Family::Geometry,
            _ => return None,
        })
    }

    /// Whether values of this type, too, are values of `wider`, spelled the same or with more digits.
    pub fn widens_to(&self, wider: &Self) -> bool {
        let size = |declared: &Self| declared.numbers.first().copied().unwrap_or(0);
        let place = |names: &[&str], declared: &Self| names.iter().position(|name| *name == declared.base);
        let steps: [&[&str]; 4] = [
            &["tinyint", "smallint", "mediumint", "int", "bigint"],
            &["char", "varchar", "tinytext", "text", "mediumtext", "longtext"],
            &["varbinary", "tinyblob", "blob", "mediumblob", "longblob"],
            &["float", "double"],
        ];
        if self.base == wider.base && self.unsigned == wider.unsigned {
            return match self.family() {
                Some(Family::Enum | Family::Set) => wider.members.starts_with(&self.members),
                Some(Family::Decimal) => {
                    let digits = |d: &Self| (size(d), d.numbers.get(1).copied().unwrap_or(0));
                    let ((p, s), (wide_p, wide_s)) = (digits(self), digits(wider));
                    wide_s >= s && wide_p.saturating_sub(wide_s) >= p.saturating_sub(s)
                }
                // The number in an integer's brackets is no limit.
                Some(Family::Integer | Family::Real | Family::Year) => true,
                Some(Family::Bytes) if self.base == "binary" => size(self) == size(wider),
                _ => size(wider) >= size(self),
            };
        }
        steps.iter().any(|names| match (place(names, self), place(names, wider)) {
            (Some(narrow), Some(wide)) if names[0] == "tinyint" => {
                // A type without a sign fits the next greater one with a sign.
                wide > narrow && (self.unsigned || !wider.unsigned)
            }
            (Some(narrow), Some(wide)) if wider.base == "varchar" || wider.base == "varbinary" => {
                wide > narrow && size(wider) >= size(self)
            }
            (Some(narrow), Some(wide)) => wide > narrow && wider.base != "tinytext" && wider.base != "tinyblob",
            _ => false,
        })
    }
}

/// The quoted strings of a list, up to its bracket.
fn quoted(text: &str) -> Vec<String> {
    let (mut members, mut member, mut chars) = (Vec::new(), None::<String>, text.chars().peekable());
    while let Some(char) = chars.next() {
        match (&mut member, char) {
            (None, ')') => break,
            (None, '\'') => member = Some(String::new()),
            (None, _) => {}
            (Some(text), '\'') if chars.peek() == Some(&'\'') => {
                text.push('\'');
                chars.next();
            }
            (Some(_), '\'') => members.extend(member.take()),
            // The server escapes what its own parser would take for something else.
            (Some(text), '\\') => text.push(match chars.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some('0') => '\0',
                Some(other) => other,
                None => break,
            }),
            (Some(text), other) => text.push(other),
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_types_are_read() {
        let list = Declared::parse(r"enum('a','b''c','d,e)','','f\\g')");
        assert_eq!(list.members, ["a", "b'c", "d,e)", "", r"f\g"]);
        let number = Declared::parse("decimal(65,30) unsigned zerofill");
        assert_eq!((number.base.as_str(), &*number.numbers, number.unsigned), ("decimal", &[65, 30][..], true));
        assert!(Declared::parse("text /*M!100301 COMPRESSED*/").compressed);
        for broken in ["enum('a", "enum(", "decimal(", "", "set(')", "set('\\\\"] {
            Declared::parse(broken);
        }
    }

    #[test]
    fn widening_loses_nothing() {
        for (from, to, expected) in [
            ("int(11)", "bigint(20)", true),
            ("bigint(20)", "int(11)", false),
            ("int(10) unsigned", "bigint(20)", true),
            ("int(11)", "bigint(20) unsigned", false),
            ("int(11)", "int(10) unsigned", false),
            ("varchar(10)", "varchar(20)", true),
            ("varchar(20)", "varchar(10)", false),
            ("varchar(20)", "text", true),
            ("text", "varchar(20)", false),
            ("decimal(10,2)", "decimal(12,4)", true),
            ("decimal(10,2)", "decimal(10,4)", false),
            ("enum('a','b')", "enum('a','b','c')", true),
            ("enum('a','b')", "enum('b','a')", false),
            ("datetime", "datetime(6)", true),
            ("datetime(6)", "datetime", false),
            ("varchar(10)", "int(11)", false),
        ] {
            assert_eq!(Declared::parse(from).widens_to(&Declared::parse(to)), expected, "{from} {to}");
        }
    }
}
