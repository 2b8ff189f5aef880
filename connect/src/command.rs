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

/// Puts the sync file's name into the commands of a message.
pub fn with_file(text: &str, file: &Path) -> String {
    let word = shell_word(&file.to_string_lossy());
    ["run", "rm", "release", "retry", "skip", "check", "plan", "apply", "status"]
        .iter()
        .fold(text.to_owned(), |text, verb| {
            text.replace(&format!("tidemill sync {verb} FILE"), &format!("tidemill sync {verb} {word}"))
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
    }
}
