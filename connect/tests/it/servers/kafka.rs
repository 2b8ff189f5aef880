//! One broker of Apache Kafka that is its own controller. Its jars are fetched once by `scripts/fetch-server`.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::process::{self, Folder, Process, skipped, succeed};
use super::template;

const JAVA: &str = "/usr/bin/java";
const CLUSTER: &str = "dGlkZW1pbGwtdGVzdHMtMQ";
const START_LIMIT: Duration = Duration::from_secs(60);

/// A broker that may be running. Its port stays the same from start to start.
pub struct Broker {
    process: Process,
    jars: PathBuf,
    port: u16,
}

impl Broker {
    /// Starts one; `None`, after saying so, where it cannot be had.
    pub fn start() -> Option<Self> {
        let jars = match jars() {
            Ok(jars) => jars,
            Err(why) => {
                skipped(std::thread::current().name().unwrap_or("a test"), &format!("no Kafka broker: {why}"));
                return None;
            }
        };
        let mut broker = Self { process: Process::new("KILL"), jars, port: process::free_port() };
        broker.configure();
        let data = broker.process.folder.path("data");
        template::copy("kafka", &data, |to| format(&broker.jars, to));
        process::hand_over_all(&data);
        broker.run();
        Some(broker)
    }

    /// The URL by which a log names it.
    pub fn url(&self) -> String {
        format!("kafka://127.0.0.1:{}", self.port)
    }

    fn configure(&self) {
        let controller = loop {
            let port = process::free_port();
            if port != self.port {
                break port;
            }
        };
        let settings = settings(self.port, controller, &self.process.folder.path("data"));
        std::fs::write(self.process.folder.path("server.properties"), settings).unwrap();
    }

    /// Starts it again after `stop` or `kill9`.
    pub fn run(&mut self) {
        let properties = self.process.folder.path("server.properties").display().to_string();
        let mut args: Vec<String> = heap().into();
        args.extend(["-cp".into(), class_path(&self.jars), "kafka.Kafka".into(), properties]);
        self.process.start(Path::new(JAVA), &args, &[], "").unwrap_or_else(|log| panic!("the broker ended: {log}"));
        let deadline = Instant::now() + START_LIMIT;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "the broker is not ready: {}", self.process.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills it, as a power cut would.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.process.kill9();
    }
}

/// What a broker of one test needs, not more.
fn heap() -> [String; 4] {
    ["-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"].map(str::to_owned)
}

fn class_path(jars: &Path) -> String {
    format!("{}/*", jars.display())
}

/// Where it differs from the defaults: one replica, one machine. As by default, it makes any topic that somebody asks for
/// without saying that it must not: nobody here may.
fn settings(broker: u16, controller: u16, data: &Path) -> String {
    format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
         listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{broker}\ncontroller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\nlog.dirs={}\n\
         offsets.topic.replication.factor=1\noffsets.topic.num.partitions=1\n\
         transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
         transaction.state.log.num.partitions=4\nshare.coordinator.state.topic.replication.factor=1\n\
         share.coordinator.state.topic.min.isr=1\ngroup.initial.rebalance.delay.ms=0\nnum.partitions=1\n\
         auto.create.topics.enable=true\n",
        data.display()
    )
}

/// Makes the data folder of a new cluster.
fn format(jars: &Path, data: &Path) {
    let properties = data.with_extension("properties");
    std::fs::write(&properties, settings(1, 2, data)).unwrap();
    let mut tool = process::command(Path::new(JAVA), "KILL");
    tool.args(["-cp", &class_path(jars), "kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c"]).arg(&properties);
    succeed(&mut tool);
}

fn jars() -> Result<PathBuf, String> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOUND.get_or_init(find).clone()
}

fn find() -> Result<PathBuf, String> {
    if !Path::new(JAVA).exists() {
        return Err(format!("{JAVA} is not installed"));
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/fetch-server");
    let output = Command::new(&script).arg("kafka").arg(template::cache()).stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("{}: {e}", script.display()))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "));
    }
    let home = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let jar = std::fs::read_dir(&home).unwrap().flatten().next().expect("jars").path();
    let reads = process::command(Path::new("test"), "KILL").arg("-r").arg(jar).status();
    if reads.is_ok_and(|status| status.success()) {
        return Ok(home);
    }
    // The servers' user cannot come to the target folder; a copy in memory lives as long as the tests.
    static COPY: OnceLock<Folder> = OnceLock::new();
    let copy = COPY.get_or_init(Folder::new).path("kafka");
    template::copy_all(&home, &copy);
    process::hand_over_all(&copy);
    Ok(copy)
}
