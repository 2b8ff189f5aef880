//! Commands inside messages: what is printed can be typed.
//!
//! A connector does not know the sync file's name. Its messages say `tidemill sync run FILE`, and who knows the name puts
//! it in. Tables are written as words of a shell from the start.

use std::path::Path;

/// Text as one word of a shell's command line.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-./".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

/// Commands of a sync file.
const VERBS: [&str; 10] = ["run", "rm", "release", "retry", "skip", "check", "plan", "apply", "status", "verify"];

/// Puts the sync file's name into the commands of a message.
pub fn with_file(text: &str, file: &Path) -> String {
    let word = shell_word(&file.to_string_lossy());
    VERBS.iter().fold(text.to_owned(), |text, verb| {
        text.replace(&format!("tidemill sync {verb} FILE"), &format!("tidemill sync {verb} {word}"))
    })
}

/// Lets the commands of a message mean one sync of the file.
pub fn with_sync(text: &str, sync: &str) -> String {
    let option = format!(" --sync {}", shell_word(sync));
    VERBS.iter().fold(text.to_owned(), |text, verb| {
        let command = format!("tidemill sync {verb} FILE");
        let mut pieces = text.split(&command);
        let mut out = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            out.push_str(&command);
            if !piece.starts_with(" --sync ") {
                out.push_str(&option);
            }
            out.push_str(piece);
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_get_the_name_of_their_file() {
        let said = "first: tidemill sync rm FILE --force, then tidemill sync run FILE --replace; FILE stays";
        let typed =
            "first: tidemill sync rm 'my s.toml' --force, then tidemill sync run 'my s.toml' --replace; FILE stays";
        assert_eq!(with_file(said, Path::new("my s.toml")), typed);
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        let one = with_sync(said, "b");
        assert!(
            one.contains("sync rm FILE --sync b --force, then tidemill sync run FILE --sync b --replace; FILE"),
            "{one}"
        );
        assert_eq!(with_sync(&one, "b"), one, "once is enough");
    }
}
