//! CRIU's request protocol, as far as restoring and dumping need it.
//!
//! `criu swrk FD` serves one request on a SEQPACKET socket and ends; on the way it
//! says where it is and waits for an answer, if that was asked for. Field
//! numbers are those of CRIU's `images/rpc.proto`, which are kept stable.

use std::io;
use std::os::fd::OwnedFd;

use prost::Message;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::host::process;

/// `criu_req_type`.
const DUMP: i32 = 1;
const RESTORE: i32 = 2;
const NOTIFY: i32 = 6;
const VERSION: i32 = 10;

/// An answer is a few hundred bytes; the error text is the one long part.
const ANSWER_MAX: usize = 64 * 1024;

/// `inherit_fd`: a descriptor of the server stands for a dumped resource.
#[derive(Clone, PartialEq, Message)]
pub(super) struct InheritFd {
    #[prost(string, required, tag = "1")]
    pub(super) key: String,
    #[prost(int32, required, tag = "2")]
    pub(super) fd: i32,
}

/// `criu_opts`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Options {
    #[prost(int32, required, tag = "1")]
    pub(super) images_dir_fd: i32,
    #[prost(int32, optional, tag = "2")]
    pub(super) pid: Option<i32>,
    #[prost(bool, optional, tag = "3")]
    pub(super) leave_running: Option<bool>,
    #[prost(bool, optional, tag = "7")]
    pub(super) shell_job: Option<bool>,
    #[prost(bool, optional, tag = "8")]
    pub(super) file_locks: Option<bool>,
    #[prost(int32, optional, tag = "9")]
    pub(super) log_level: Option<i32>,
    #[prost(string, optional, tag = "10")]
    pub(super) log_file: Option<String>,
    #[prost(bool, optional, tag = "12")]
    pub(super) notify_scripts: Option<bool>,
    #[prost(string, optional, tag = "13")]
    pub(super) root: Option<String>,
    #[prost(int32, optional, tag = "17")]
    pub(super) work_dir_fd: Option<i32>,
    #[prost(message, repeated, tag = "27")]
    pub(super) inherit_fd: Vec<InheritFd>,
    #[prost(int32, optional, tag = "34")]
    pub(super) manage_cgroups_mode: Option<i32>,
    #[prost(uint32, optional, tag = "35")]
    pub(super) ghost_limit: Option<u32>,
    #[prost(string, repeated, tag = "37")]
    pub(super) external: Vec<String>,
    #[prost(bool, optional, tag = "52")]
    pub(super) tcp_close: Option<bool>,
    #[prost(int32, optional, tag = "64")]
    pub(super) network_lock: Option<i32>,
}

/// `criu_cg_mode.IGNORE`: the tree stays in the cgroup CRIU was started in.
pub(super) const CGROUPS_IGNORE: i32 = 0;

/// `criu_network_lock_method.SKIP`: no TCP connection is alive in a snapshot.
pub(super) const NETWORK_LOCK_SKIP: i32 = 3;

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "2")]
    options: Option<Options>,
    #[prost(bool, optional, tag = "3")]
    notify_success: Option<bool>,
}

impl Request {
    fn of(kind: i32, options: Option<Options>) -> Self {
        Self { kind, options, notify_success: None }
    }
}

/// `criu_notify`.
#[derive(Clone, PartialEq, Message)]
struct Notice {
    #[prost(string, optional, tag = "1")]
    script: Option<String>,
}

/// The tree stands still and all of its images are written.
const WRITTEN: &str = "post-dump";

#[derive(Clone, PartialEq, Message)]
struct Restored {
    #[prost(int32, required, tag = "1")]
    pid: i32,
}

#[derive(Clone, PartialEq, Message)]
struct CriuVersion {
    #[prost(int32, required, tag = "1")]
    major: i32,
    #[prost(int32, required, tag = "2")]
    minor: i32,
    #[prost(int32, optional, tag = "4")]
    sublevel: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(bool, required, tag = "2")]
    success: bool,
    #[prost(message, optional, tag = "4")]
    restored: Option<Restored>,
    #[prost(message, optional, tag = "5")]
    notice: Option<Notice>,
    #[prost(int32, optional, tag = "7")]
    errno: Option<i32>,
    #[prost(string, optional, tag = "9")]
    message: Option<String>,
    #[prost(message, optional, tag = "10")]
    version: Option<CriuVersion>,
}

/// What went wrong between this program and CRIU.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// The socket failed or CRIU ended without an answer.
    #[error("CRIU did not answer")]
    Silent(#[source] io::Error),
    /// The answer is not of the protocol.
    #[error("CRIU's answer cannot be read")]
    Form(#[source] prost::DecodeError),
    /// CRIU says it failed.
    #[error("CRIU failed: {message}")]
    Failed {
        /// CRIU's own words, or the errno's text when it has none.
        message: String,
    },
}

/// The client's end of a `swrk` server's socket.
#[derive(Debug)]
pub(super) struct Client {
    socket: AsyncFd<OwnedFd>,
}

impl Client {
    /// Makes the pair: a client and the server's end, to be inherited by CRIU.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        Ok((Self { socket: process::watch(ours, interest)? }, theirs))
    }

    /// Restores; answers the root process's pid.
    pub(super) async fn restore(&self, options: Options) -> Result<i32, RpcError> {
        let answer = self.ask(&Request::of(RESTORE, Some(options))).await?;
        match answer.restored {
            Some(restored) => Ok(restored.pid),
            None => Err(RpcError::Failed { message: "no pid in the answer".into() }),
        }
    }

    /// CRIU's version, such as `4.2.1`.
    pub(super) async fn version(&self) -> Result<(u32, u32, u32), RpcError> {
        let answer = self.ask(&Request::of(VERSION, None)).await?;
        let number = |n: i32| u32::try_from(n).unwrap_or(0);
        match answer.version {
            Some(v) => Ok((number(v.major), number(v.minor), number(v.sublevel.unwrap_or(0)))),
            None => Err(RpcError::Failed { message: "no version in the answer".into() }),
        }
    }

    /// Dumps a tree. When all of its images are written, and while it stands still,
    /// `then` is awaited: whether what it stands for may happen to the tree, else it
    /// goes on running.
    pub(super) async fn dump(
        &self,
        options: Options,
        then: impl Future<Output = bool>,
    ) -> Result<(), RpcError> {
        self.send(&Request::of(DUMP, Some(options))).await?;
        tokio::pin!(then);
        let mut is_asked = false;
        loop {
            let answer = self.answer().await?;
            if answer.kind != NOTIFY {
                return Ok(());
            }
            let is_written = answer.notice.and_then(|notice| notice.script).as_deref() == Some(WRITTEN);
            let go_on = if is_written && !is_asked {
                is_asked = true;
                then.as_mut().await
            } else {
                true
            };
            self.send(&Request { notify_success: Some(go_on), ..Request::of(NOTIFY, None) }).await?;
        }
    }

    async fn send(&self, request: &Request) -> Result<(), RpcError> {
        let bytes = request.encode_to_vec();
        let sent = self.socket.async_io(Interest::WRITABLE, |socket| {
            Ok(rustix::net::send(socket, &bytes, rustix::net::SendFlags::NOSIGNAL)?)
        });
        sent.await.map(drop).map_err(RpcError::Silent)
    }

    async fn ask(&self, request: &Request) -> Result<Answer, RpcError> {
        self.send(request).await?;
        self.answer().await
    }

    async fn answer(&self) -> Result<Answer, RpcError> {
        let mut buffer = vec![0; ANSWER_MAX];
        let length = self
            .socket
            .async_io(Interest::READABLE, |socket| {
                Ok(rustix::net::recv(socket, &mut buffer[..], rustix::net::RecvFlags::empty())?.0)
            })
            .await
            .map_err(RpcError::Silent)?;
        if length == 0 {
            return Err(RpcError::Silent(io::ErrorKind::UnexpectedEof.into()));
        }
        let answer = Answer::decode(&buffer[..length]).map_err(RpcError::Form)?;
        if answer.success {
            return Ok(answer);
        }
        let message = match (answer.message, answer.errno) {
            (Some(text), _) if !text.is_empty() => text,
            (_, Some(errno)) if errno != 0 => io::Error::from_raw_os_error(errno).to_string(),
            _ => "without a reason, see its log".into(),
        };
        Err(RpcError::Failed { message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_answer_of_criu_4_is_read() {
        // criu_resp { type: RESTORE, success: false, cr_errno: 17, cr_errmsg: "Pid 1 exists" }
        let mut bytes = vec![0x08, 2, 0x10, 0, 0x38, 17, 0x4a, 12];
        bytes.extend_from_slice(b"Pid 1 exists");
        let answer = Answer::decode(&bytes[..]).unwrap();
        assert!(!answer.success);
        assert_eq!((answer.errno, answer.message.as_deref()), (Some(17), Some("Pid 1 exists")));
    }

    #[test]
    fn options_use_the_field_numbers_of_rpc_proto() {
        let options = Options {
            images_dir_fd: 5,
            external: vec!["e".into()],
            network_lock: Some(3),
            ..Options::default()
        };
        // 37 -> 0xaa 0x02, 64 -> 0x80 0x04
        assert_eq!(options.encode_to_vec(), [0x08, 5, 0xaa, 2, 1, b'e', 0x80, 4, 3]);
    }
}
