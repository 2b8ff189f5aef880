//! Every command of the README that follows a `<!-- test -->` line runs, in order, in one shell, and prints what the README
//! says it prints.

use crate::support::{Folder, PATIENCE, poll};

const MARK: &str = "<!-- test -->";

/// A marked block of commands, and what it must print if that is told.
#[derive(Debug, PartialEq)]
struct Block {
    line: usize,
    commands: String,
    output: Option<String>,
}

/// The marked blocks; an error where there is none, or a mark stands before something else.
fn blocks(text: &str) -> Result<Vec<Block>, String> {
    let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line)).peekable();
    let mut blocks: Vec<Block> = Vec::new();
    while let Some((line, text)) = lines.next() {
        if text.trim() != MARK {
            continue;
        }
        while lines.next_if(|(_, line)| line.trim().is_empty()).is_some() {}
        let commands = fenced(&mut lines, "sh").ok_or_else(|| format!("line {line}: no ```sh block after the mark"))?;
        while lines.next_if(|(_, line)| line.trim().is_empty()).is_some() {}
        blocks.push(Block { line, commands, output: fenced(&mut lines, "text") });
    }
    if blocks.is_empty() { Err(format!("no {MARK} in it")) } else { Ok(blocks) }
}

fn fenced<'a>(lines: &mut std::iter::Peekable<impl Iterator<Item = (usize, &'a str)>>, kind: &str) -> Option<String> {
    lines.next_if(|(_, line)| line.trim_end() == format!("```{kind}"))?;
    let inside = lines.map_while(|(_, line)| (line.trim_end() != "```").then_some(line));
    Some(inside.map(|line| format!("{line}\n")).collect())
}

/// Whether the lines are those expected; `...` stands for any lines, also none, and inside a line for any text.
fn matches(expected: &[&str], lines: &[&str]) -> bool {
    match expected {
        [] => lines.is_empty(),
        ["...", rest @ ..] => (0..=lines.len()).any(|skipped| matches(rest, &lines[skipped..])),
        [first, rest @ ..] => lines.first().is_some_and(|line| same_line(first, line)) && matches(rest, &lines[1..]),
    }
}

fn same_line(expected: &str, line: &str) -> bool {
    match expected.split_once("...") {
        None => expected == line,
        Some((start, rest)) => line.strip_prefix(start).is_some_and(|left| {
            (0..=left.len()).filter(|at| left.is_char_boundary(*at)).any(|at| same_line(rest, &left[at..]))
        }),
    }
}

fn tidy(text: &str) -> Vec<&str> {
    text.trim_end().lines().map(str::trim_end).collect()
}

#[test]
fn commands_of_the_readme_do_what_it_says() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    run_blocks(&Folder::new(), file, &std::fs::read_to_string(file).unwrap());
}

#[test]
fn requests_of_the_page_on_http_are_answered_as_it_says() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/HTTP.md");
    let folder = Folder::new();
    let mut server = folder.start(&["start", "--listen", "127.0.0.1:0", "--data-dir", "log"]);
    server.wait_err("http://");
    let address =
        poll(PATIENCE, || Some(server.err().split_once("http://")?.1.strip_suffix('\n')?.to_owned())).unwrap();
    let page = std::fs::read_to_string(file).unwrap();
    assert!(page.contains("127.0.0.1:7600"));
    run_blocks(&folder, file, &page.replace("127.0.0.1:7600", &address));
    server.stop("TERM");
}

/// Runs the marked blocks of a page in one shell, and compares what they print.
fn run_blocks(folder: &Folder, file: &str, text: &str) {
    let blocks = blocks(text).unwrap_or_else(|e| panic!("{file}: {e}"));
    let end = |number: usize| format!("-- end of block {number} --");
    let mut script = String::from("set -eo pipefail\n");
    for (number, block) in blocks.iter().enumerate() {
        // An answer may end without a line's end.
        script += &format!("{}\nprintf '\\n%s\\n' '{}'\n", block.commands, end(number));
    }
    std::fs::write(folder.path(".script"), script).unwrap();
    let mut shell = folder.start_program("bash", &[".script"]);
    shell.close_stdin();
    let done = shell.end();
    let mut rest = done.out.as_str();
    for (number, block) in blocks.iter().enumerate() {
        let ended = rest.split_once(&format!("{}\n", end(number)));
        let (out, after) = ended.unwrap_or_else(|| panic!("{file} line {} failed: {done:#?}", block.line));
        rest = after;
        if let Some(expected) = &block.output {
            let same = matches(&tidy(expected), &tidy(out));
            assert!(same, "{file} line {}: expected\n{expected}\nprinted\n{out}\n{}", block.line, done.err);
        }
    }
    println!("{} blocks ran", blocks.len());
    done.ok();
}

#[test]
fn a_readme_without_marks_or_with_other_output_is_seen() {
    assert!(blocks("# Title\n```sh\nls\n```\n").is_err());
    assert!(blocks(&format!("{MARK}\nprose\n")).is_err());
    let found = blocks(&format!("{MARK}\n```sh\nls\n```\n\n```text\na\n...\n```\n")).unwrap();
    let block = Block { line: 1, commands: "ls\n".into(), output: Some("a\n...\n".into()) };
    assert_eq!(found, [block]);
    assert!(matches(&["a", "...", "c"], &["a", "b", "c"]) && matches(&["..."], &[]));
    assert!(matches(&["a ... c ...", "d"], &["a b c d", "d"]) && !matches(&["a ... c"], &["a b d"]));
    assert!(
        !matches(&["a"], &["b"]) && !matches(&["a"], &[]) && !matches(&[], &["a"]) && !matches(&["...", "c"], &["a"])
    );
}

/// The code that the README quotes from a file: each run of lines, up to a line `...`, stands in the file as it is.
fn quote_faults(text: &str, read: impl Fn(&str) -> String) -> Result<Vec<String>, String> {
    const FROM: &str = "<!-- from ";
    let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line)).peekable();
    let (mut quotes, mut faults) = (0, Vec::new());
    while let Some((line, text)) = lines.next() {
        let Some(file) = text.trim().strip_prefix(FROM).and_then(|rest| rest.strip_suffix(" -->")) else { continue };
        let code = fenced(&mut lines, "rust").ok_or_else(|| format!("line {line}: no ```rust block after the mark"))?;
        let source = read(file);
        quotes += 1;
        let missing = code.split("...\n").filter(|run| !source.contains(run));
        faults.extend(missing.map(|run| format!("line {line}: {file} has no such lines:\n{run}")));
    }
    if quotes == 0 { Err("nothing is quoted".into()) } else { Ok(faults) }
}

#[test]
fn code_of_the_readme_is_that_of_the_example() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let readme = std::fs::read_to_string(format!("{root}/README.md")).unwrap();
    let read = |file: &str| std::fs::read_to_string(format!("{root}/{file}")).unwrap();
    assert_eq!(quote_faults(&readme, read), Ok(Vec::new()));
    // The twin: an example that went its own way is seen.
    assert_eq!(quote_faults(&readme, |file| read(file).replace("totals", "sums")).unwrap().len(), 2);
}
