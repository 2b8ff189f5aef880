//! The connection that changes come from: opened at a position, after a look whether the server is still the one.
//!
//! The driver answers the server's keepalives by itself, also while nobody takes its events, and reads no further then.

use std::{collections::VecDeque, time::Duration};

use futures::FutureExt;
use pgwire_replication::{
    Lsn as WireLsn, PgWireError, ReplicationClient, ReplicationConfig, SslMode, TlsConfig, client::ReplicationEvent,
};
use sqlx::PgConnection;

use super::{
    endpoint::{SETTINGS, kind_of},
    position::{Lsn, StreamPosition},
    slot::check_slot,
    stop::Stop,
};
use crate::{
    Error, ErrorKind, Result,
    endpoint::{Server, Tls},
};

/// The largest message taken: one row, with the row before it.
const MAX_MESSAGE: usize = 512 << 20;
/// Events that the driver reads ahead. Together with the largest row this bounds memory.
const READ_AHEAD: usize = 256;
/// Bytes of events that are taken from the driver while nobody asks for them, unless one has more.
const AHEAD_BYTES: usize = 4 << 20;
/// How long opening may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);

/// An open stream. Dropped, it ends in good order.
pub(super) struct Stream {
    client: ReplicationClient,
    /// What was taken from the driver before it was asked for.
    ahead: VecDeque<Received>,
    ahead_bytes: usize,
}

type Received = std::result::Result<Option<ReplicationEvent>, PgWireError>;

/// The system identifier and timeline of a server, and how far its log goes.
pub(super) struct Identity {
    pub(super) system: String,
    pub(super) timeline: u32,
    /// The end of its log.
    pub(super) end: Lsn,
}

impl Stream {
    /// Opens the stream of a new slot; tells which server it is.
    pub(super) async fn open_new(server: &Server, slot: &str, publication: &str, at: Lsn) -> Result<(Self, Identity)> {
        Self::open(server, slot, publication, at, at, |_| Ok(())).await
    }

    /// Goes on where the position is. The server may forget what comes before `durable`.
    ///
    /// # Errors
    /// `Conflict` where slot or server are not what the position says.
    pub(super) async fn resume(
        server: &Server,
        side: &mut PgConnection,
        position: &StreamPosition,
        durable: Lsn,
        patient: bool,
    ) -> Result<Self> {
        check_slot(side, position, patient).await?;
        let (slot, publication) = (&position.slot, &position.publication);
        let check = |found: &Identity| -> Result<()> {
            if found.system != position.system {
                let (stored, found) = (position.system.clone(), found.system.clone());
                return Err(Stop::OtherServer { stored, found }.into());
            }
            if found.end < position.lsn {
                let (end, stored) = (found.end.to_string(), position.lsn.to_string());
                return Err(Stop::Behind { end, stored }.into());
            }
            match found.timeline == position.timeline {
                true => Ok(()),
                false => Err(Stop::Timeline { stored: position.timeline, found: found.timeline }.into()),
            }
        };
        Self::open(server, slot, publication, position.lsn, durable, check).await.map(|(stream, _)| stream)
    }

    async fn open(
        server: &Server,
        slot: &str,
        publication: &str,
        from: Lsn,
        durable: Lsn,
        check: impl FnOnce(&Identity) -> Result<()>,
    ) -> Result<(Self, Identity)> {
        let doing = || format!("follow postgres://{server}");
        let fail = |error: PgWireError| stream_error(&doing(), slot, &error);
        let config = config(server, slot, publication)?
            .with_start_lsn(WireLsn::from_u64(from.0))
            .with_ack_lsn(WireLsn::from_u64(durable.0));
        let open = async {
            let mut client = ReplicationClient::connect_gated(config).await.map_err(fail)?;
            let found = client.identify_system().await.map_err(fail)?;
            let end = Lsn(found.xlogpos.as_u64());
            let identity = Identity { system: found.system_id, timeline: found.timeline, end };
            check(&identity)?;
            client.start().await.map_err(fail)?;
            client.wait_started().await.map_err(fail)?;
            Ok((Self { client, ahead: VecDeque::new(), ahead_bytes: 0 }, identity))
        };
        match tokio::time::timeout(OPEN_TIMEOUT, open).await {
            Ok(opened) => opened,
            Err(_) => Err(Error::unavailable(format!("{}: no answer in {} s", doing(), OPEN_TIMEOUT.as_secs()))),
        }
    }

    /// Takes events from the driver until there are many, so that the server goes on sending while a transaction is made
    /// durable.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(super) async fn read_ahead(&mut self) {
        while self.ahead_bytes < AHEAD_BYTES && self.ahead.back().is_none_or(|last| matches!(last, Ok(Some(_)))) {
            let received = self.client.recv().await;
            self.ahead_bytes += bytes_of(&received);
            self.ahead.push_back(received);
        }
    }

    /// The next event; nothing where none came in time. The stream is of no use after an error.
    pub(super) async fn next(&mut self, wait: Duration, slot: &str) -> Result<Option<ReplicationEvent>> {
        // The runtime would call the stream empty after 128 events, to let others run; a poll is short enough.
        let ready = |client: &mut ReplicationClient| tokio::task::unconstrained(client.recv()).now_or_never();
        let mut received = self.ahead.pop_front();
        match &received {
            Some(ahead) => self.ahead_bytes -= bytes_of(ahead),
            None => received = ready(&mut self.client),
        }
        if received.is_none() {
            // The driver may have more to hand over.
            tokio::task::yield_now().await;
            received = ready(&mut self.client);
        }
        if received.is_none() && !wait.is_zero() {
            received = tokio::time::timeout(wait, self.client.recv()).await.ok();
        }
        match received {
            None => Ok(None),
            Some(Ok(Some(event))) => Ok(Some(event)),
            Some(Ok(None)) => Err(Error::unavailable("the server ended the stream")),
            Some(Err(error)) => Err(stream_error("follow the stream", slot, &error)),
        }
    }

    /// Everything before `lsn` is durable.
    pub(super) fn confirm(&self, lsn: Lsn) {
        self.client.update_applied_lsn(WireLsn::from_u64(lsn.0));
    }
}

fn bytes_of(received: &Received) -> usize {
    let held = match received {
        Ok(Some(ReplicationEvent::XLogData { data, .. })) => data.len(),
        Ok(Some(ReplicationEvent::Message { content, .. })) => content.len(),
        _ => 0,
    };
    held + size_of::<Received>()
}

fn config(server: &Server, slot: &str, publication: &str) -> Result<ReplicationConfig> {
    let mode = match server.tls {
        Tls::Disable => SslMode::Disable,
        // A socket of the same machine is not encrypted.
        _ if server.host.starts_with('/') => SslMode::Disable,
        Tls::Prefer => SslMode::Prefer,
        Tls::Require => SslMode::Require,
        Tls::VerifyFull => SslMode::VerifyFull,
    };
    // The other driver takes the certificate authority from here, too.
    let ca_pem_path = std::env::var_os("PGSSLROOTCERT").map(Into::into);
    let tls = TlsConfig { mode, ca_pem_path, ..TlsConfig::default() };
    let password = match server.password()? {
        Some(password) => password,
        None => std::env::var("PGPASSWORD").unwrap_or_default(),
    };
    let options: Vec<_> = SETTINGS.iter().map(|(name, value)| format!("-c {name}={value}")).collect();
    Ok(ReplicationConfig::new(&server.host, &server.user, password, &server.database, slot, publication)
        .with_port(server.port)
        .with_tls(tls)
        .with_options(options.join(" "))
        .with_application_name("tidemill")
        .with_status_interval(Duration::from_secs(1))
        .with_wakeup_interval(Duration::from_secs(5))
        .with_buffer_size(READ_AHEAD)
        .with_max_message_size(MAX_MESSAGE))
}

fn stream_error(doing: &str, slot: &str, error: &PgWireError) -> Error {
    let kind = match error {
        PgWireError::Server(said) => {
            let code = said.split_once("SQLSTATE ").and_then(|(_, rest)| rest.get(..5)).unwrap_or_default();
            match code {
                "42704" if said.contains("replication slot") => return Stop::SlotGone(slot.to_owned()).into(),
                "55000" if said.contains("slot") => return Stop::SlotLost(slot.to_owned()).into(),
                // The server could not read its own log; it says so also while it starts.
                "" => ErrorKind::Unavailable,
                _ => kind_of(code),
            }
        }
        PgWireError::Auth(_) | PgWireError::Tls(_) => ErrorKind::Denied,
        PgWireError::Protocol(_) => ErrorKind::Corrupt,
        PgWireError::MessageTooLarge { .. } => ErrorKind::Unsupported,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("{doing}: {error}"))
}
