//! stub, replaced at merge
use std::cell::Cell; use std::rc::Rc; use std::sync::Arc; use std::net::SocketAddr;
use dfstore_proto::error::{ErrorCode, ErrorReply}; use dfstore_proto::frame::PieceHead; use dfstore_proto::ids::TaskId;
use dfstore_proto::message::{Fetch, Message, ReadEnd, Token}; use crate::membership::{Members, Node}; use crate::rt::arena::SlotMut;
#[derive(Clone)] pub struct Links;
pub struct LinksSetup { pub me: Arc<str>, pub credential: Token }
pub struct FetchedPiece { pub slot: SlotMut, pub head: PieceHead, pub end: ReadEnd }
#[derive(Clone, Debug, thiserror::Error)] pub enum LinkError { #[error("{node} {reason}")] Unreachable { node: String, reason: String }, #[error("{node}")] Silent { node: String }, #[error("{0}")] Refused(ErrorReply), #[error("{node}")] WrongBytes { node: String }, #[error("down")] ShuttingDown }
impl LinkError { pub fn is_unreachable(&self) -> bool { true } pub fn code(&self) -> Option<ErrorCode> { None } }
impl Links { pub fn new(_: LinksSetup) -> Links { Links }
 pub fn members(&self, _: &Members) {}
 pub async fn ask(&self, _n: &Node, _t: Option<&TaskId>, m: Message) -> Result<Message, LinkError> { Ok(m) }
 pub async fn ask_at(&self, _a: SocketAddr, m: Message) -> Result<Message, LinkError> { Ok(m) }
 pub async fn fetch(&self, _n: &Node, _f: Fetch, _s: SlotMut, _p: Option<Rc<Cell<u64>>>) -> Result<FetchedPiece, LinkError> { Err(LinkError::ShuttingDown) } }
