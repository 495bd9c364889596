//! Plays one history: asks the nodes, tells the model what came back.
//!
//! Owns the connections of the history. Every check is the model's; here an error is a contradiction, or a node that
//! cannot be reached at all.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dfstore_proto::message::{Scope, Target};
use dfstore_proto::object::WriteMode;
use http::Method;

use crate::bucket::Bucket;
use crate::data::Payload;
use crate::eventually;
use crate::faulty_backend::{Fault, Rule};
use crate::http::{Connection, Response};
use crate::model::answer::{Answer, Content, Label};
use crate::model::history::{Action, History, KEYS, Part, Step, Trouble};
use crate::model::stage::{Ending, Stage, bucket};
use crate::model::world::{Outcome, World};
use crate::native::{NativeClient, target};
use crate::peer::Peer;
use crate::scene::{ASYNC, EPHEMERAL, PATIENCE, same};

/// A history that is being played.
pub struct Play {
    /// What is played.
    pub history: History,
    place: usize,
    restart: Ending,
    world: World,
    /// The steps that are done.
    done: usize,
    connections: Vec<Option<Connection>>,
    /// Deletions whose answer nobody waits for.
    unanswered: Vec<Connection>,
    /// The bucket, behind the peers' back; made when it is needed.
    objects: Option<Bucket>,
}

impl Play {
    /// Nothing is done yet. `place` is a bucket that no other history plays in at the same time.
    /// `restart` is how nodes end at its restart.
    pub fn new(history: History, place: usize, stage: &Stage, restart: Ending) -> Play {
        let world = World::new(stage.rules(place));
        Play { history, place, restart, world, done: 0, connections: Vec::new(), unanswered: Vec::new(), objects: None }
    }

    /// Steps up to the next restart, or to the end.
    pub fn play_part(&mut self, stage: &Stage) -> Result<()> {
        while let Some(step) = self.history.steps.get(self.done).copied() {
            self.done += 1;
            if step.action == Action::Restart {
                break;
            }
            self.play(stage, step).with_context(|| format!("at step {}, {step}", self.done - 1))?;
        }
        Ok(())
    }

    /// To be called when nodes are about to end: connections are closed.
    pub fn before_restart(&mut self) {
        self.connections.clear();
        self.unanswered.clear();
    }

    /// To be called when nodes have been started again.
    pub fn after_restart(&mut self) {
        self.world.restarted();
    }

    /// Lets everything through.
    pub fn end_trouble(&mut self, stage: &Stage) -> Result<()> {
        self.make_trouble(stage, Trouble::Nothing)
    }

    /// Soon the nodes owe the bucket nothing: it has what clients see, and nodes agree.
    pub fn check_at_rest(&mut self, stage: &Stage) -> Result<()> {
        let mut last = Ok(());
        let rests = eventually("the bucket is as it should be", PATIENCE, || {
            let rested = self.rested(stage);
            rested.map_err(|error| last = Err(error)).ok()
        });
        if let Err(late) = rests {
            return last.context(late);
        }
        self.world = rests?;
        for node in 0..stage.peers().len() {
            for key in 0..KEYS.len() {
                self.play(stage, Step { node, action: Action::Get { key, no_cache: true } }).context("at rest")?;
            }
            self.play(stage, Step { node, action: Action::List { paged: false } }).context("at rest")?;
        }
        Ok(())
    }

    /// The model when nothing is owed any more, if what can be seen allows that.
    fn rested(&mut self, stage: &Stage) -> Result<World> {
        let mut world = self.world.clone();
        world.at_rest()?;
        for key in 0..KEYS.len() {
            look_into_bucket(&mut world, stage, &bucket(self.place), key, &self.key(key))?;
            for node in 0..stage.peers().len() {
                let head = Answer::of_head(&self.ask(stage, node, "HEAD", key, &[], b"")?);
                ensure!(head.label != Label::Pending, "{} is pending", self.key(key));
                world.read(key, false, &head)?;
            }
        }
        Ok(world)
    }

    fn play(&mut self, stage: &Stage, Step { node, action }: Step) -> Result<()> {
        let node = node % stage.peers().len();
        match action {
            Action::Put { key, mode, payload, native } => {
                let outcome = self.put(stage, node, (key, mode, payload, native))?;
                self.world.put(key, mode, payload, &outcome)?;
                self.look_into_bucket(stage, key)
            }
            Action::Get { key, no_cache } => self.get(stage, node, key, no_cache, None),
            Action::Range { key, part } => self.get(stage, node, key, false, Some(part)),
            Action::Head { key } => {
                let answer = self.ask(stage, node, "HEAD", key, &[], b"");
                let answer = answer.as_ref().map_or_else(Answer::failed, Answer::of_head);
                Ok(self.world.read(key, false, &answer)?)
            }
            Action::List { paged } => self.list(stage, node, paged),
            Action::Copy { from, to } => {
                let source = format!("source_object_key={}", self.key(from));
                let form = ("Content-Type", "application/x-www-form-urlencoded");
                let headers = [form, ("X-Dragonfly-Object-Operation", "copy")];
                let outcome = outcome(self.ask(stage, node, "PUT", to, &headers, source.as_bytes()));
                self.world.copied(from, to, &outcome)?;
                self.look_into_bucket(stage, to)
            }
            Action::Delete { key } if self.world.trouble().hides_deletions() => {
                // A node that is told to stop would wait for it.
                if self.restart == Ending::Kill { self.delete_without_answer(stage, node, key) } else { Ok(()) }
            }
            Action::Delete { key } => {
                let outcome = outcome(self.ask(stage, node, "DELETE", key, &[], b""));
                self.world.deleted(key, &outcome)?;
                self.look_into_bucket(stage, key)
            }
            Action::Evict { key } => {
                let worked = NativeClient::connect_any(stage.address(node))?.evict(&self.target(key), Scope::Node)?;
                ensure!(worked.failures.is_empty(), "evict: {:?}", worked.failures);
                Ok(())
            }
            Action::Trouble(trouble) => self.make_trouble(stage, trouble),
            Action::Outside { key, payload } => self.change_outside(stage, key, payload),
            Action::Restart => bail!("a restart is not for one history to make"),
        }
    }

    fn key(&self, key: usize) -> String {
        format!("h{}/{}", self.history.seed, KEYS[key])
    }

    fn target(&self, key: usize) -> Target {
        target(&bucket(self.place), &self.key(key))
    }

    fn ask(
        &mut self,
        stage: &Stage,
        node: usize,
        method: &str,
        key: usize,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response> {
        let path = Peer::object_path(&bucket(self.place), &self.key(key));
        self.request(stage, node, method, &path, headers, body)
    }

    /// One request on the connection to this node, which is closed after anything but a success.
    fn request(
        &mut self,
        stage: &Stage,
        node: usize,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response> {
        self.connections.resize_with(stage.peers().len(), || None);
        let mut connection = match self.connections[node].take() {
            Some(connection) => connection,
            None => Connection::open(stage.address(node))?,
        };
        let response = connection.request(method, path, headers, body)?;
        if response.status() < 300 {
            self.connections[node] = Some(connection);
        }
        Ok(response)
    }

    fn put(
        &mut self,
        stage: &Stage,
        node: usize,
        (key, mode, payload, native): (usize, u8, Payload, bool),
    ) -> Result<Outcome> {
        if native {
            let mode = match mode {
                ASYNC => WriteMode::AsyncWriteBack,
                EPHEMERAL => WriteMode::Ephemeral,
                _ => WriteMode::WriteBack,
            };
            let mut client = NativeClient::connect(stage.address(node), &self.target(key))?;
            let put = client.put(&self.target(key), &payload.bytes(), mode);
            return Ok(put.map_or_else(|error| Outcome::Failed(0, format!("{error:#}")), |_| Outcome::Done));
        }
        let path = format!("{}?mode={mode}", Peer::object_path(&bucket(self.place), &self.key(key)));
        Ok(outcome(self.request(stage, node, "PUT", &path, &[], &payload.bytes())))
    }

    fn get(&mut self, stage: &Stage, node: usize, key: usize, no_cache: bool, part: Option<Part>) -> Result<()> {
        let mut headers = Vec::new();
        headers.extend(part.map(|part| ("Range", part.header())));
        headers.extend(no_cache.then_some(("Cache-Control", "no-cache")));
        let response = self.ask(stage, node, "GET", key, &headers, b"");
        let answer = match response {
            Ok(response) => Answer::of_get(response, part),
            Err(error) => Answer::failed(format!("{error:#}")),
        };
        Ok(self.world.read(key, no_cache, &answer)?)
    }

    fn list(&mut self, stage: &Stage, node: usize, paged: bool) -> Result<()> {
        let prefix = format!("h{}%2F", self.history.seed);
        let limit = if paged { 1 } else { 1000 };
        let (mut found, mut marker) = (Vec::new(), String::new());
        loop {
            let query = format!("prefix={prefix}&limit={limit}&marker={}", marker.replace('/', "%2F"));
            let path = format!("/buckets/{}/metadatas?{query}", bucket(self.place));
            let answer = self.request(stage, node, "GET", &path, &[], b"")?;
            ensure!(answer.status() == 200, "list: {} {}", answer.status(), answer.text());
            let page: serde_json::Value = serde_json::from_slice(&answer.body)?;
            for entry in page["Metadatas"].as_array().context("entries")? {
                let (key, length) = (entry["Key"].as_str(), entry["ContentLength"].as_u64());
                found.push((key.context("a key")?.to_owned(), length.context("a length")?));
            }
            if page["IsTruncated"] != true {
                break;
            }
            marker = page["NextMarker"].as_str().context("a marker")?.to_owned();
            ensure!(found.len() <= KEYS.len(), "the listing shows too much: {found:?}");
        }
        for key in 0..KEYS.len() {
            let name = self.key(key);
            let shown: Vec<u64> = found.iter().filter(|(found, _)| *found == name).map(|(_, length)| *length).collect();
            ensure!(shown.len() <= 1, "{name} is listed twice");
            self.world.listed(key, shown.first().copied())?;
        }
        let ours: Vec<String> = (0..KEYS.len()).map(|key| self.key(key)).collect();
        ensure!(found.iter().all(|(found, _)| ours.contains(found)), "strangers are listed: {found:?}");
        Ok(())
    }

    /// The bucket does not answer: the client would wait for 10 s, so it does not wait. Others see the deletion soon.
    fn delete_without_answer(&mut self, stage: &Stage, node: usize, key: usize) -> Result<()> {
        let path = Peer::object_path(&bucket(self.place), &self.key(key));
        let mut connection = Connection::open(stage.address(node))?;
        connection.send_head("DELETE", &path, &[], 0)?;
        self.unanswered.push(connection);
        eventually(&format!("{} is deleted", self.key(key)), PATIENCE, || {
            let answer = self.ask(stage, node, "GET", key, &[], b"").ok()?;
            (answer.status() == 404).then_some(())
        })?;
        Ok(self.world.deleted(key, &Outcome::Pending)?)
    }

    fn change_outside(&mut self, stage: &Stage, key: usize, payload: Content) -> Result<()> {
        let name = self.key(key);
        let objects = match &mut self.objects {
            Some(objects) => objects,
            none => none.insert(stage.backend()?.untroubled_endpoint().bucket(&bucket(self.place))),
        };
        match payload {
            Some(payload) => drop(objects.put(&name, &payload.bytes())?),
            None => objects.delete(&name)?,
        }
        Ok(self.world.changed_outside(key, payload)?)
    }

    fn make_trouble(&mut self, stage: &Stage, trouble: Trouble) -> Result<()> {
        let place = format!("{}/h{}/", bucket(self.place), self.history.seed);
        let backend = stage.backend()?;
        // What the model lets happen from now on must not happen before it knows.
        if trouble.lets_writes_through() {
            self.world.set_trouble(trouble);
        }
        backend.set_rules_at(&place, rules_of(trouble).into_iter().map(|rule| rule.at(place.clone())));
        self.world.set_trouble(trouble);
        Ok(())
    }

    fn look_into_bucket(&mut self, stage: &Stage, key: usize) -> Result<()> {
        let name = self.key(key);
        look_into_bucket(&mut self.world, stage, &bucket(self.place), key, &name)
    }
}

fn look_into_bucket(world: &mut World, stage: &Stage, bucket: &str, key: usize, name: &str) -> Result<()> {
    let bytes = stage.backend()?.stored(bucket, name);
    let is_it = |content: Content| match (&bytes, content) {
        (None, None) => true,
        (Some(bytes), Some(payload)) => same(bytes, payload),
        _ => false,
    };
    let seen = bytes.as_ref().map_or("nothing".to_owned(), |bytes| format!("{} bytes", bytes.len()));
    Ok(world.bucket_seen(key, is_it, &seen)?)
}

fn outcome(response: Result<Response>) -> Outcome {
    let response = match response {
        Ok(response) => response,
        Err(error) => return Outcome::Failed(0, format!("{error:#}")),
    };
    match response.status() {
        200 => Outcome::Done,
        202 => Outcome::Pending,
        404 => Outcome::Missing,
        status => Outcome::Failed(status, response.text()),
    }
}

fn rules_of(trouble: Trouble) -> Vec<Rule> {
    let writes = [Method::PUT, Method::POST, Method::DELETE];
    match trouble {
        Trouble::Nothing => Vec::new(),
        Trouble::WritesFail => writes.map(|method| Rule::on(method, Fault::internal_error())).into(),
        Trouble::WritesDenied => writes.map(|method| Rule::on(method, Fault::access_denied())).into(),
        Trouble::AnswersLost => vec![
            Rule::on(Method::PUT, Fault::LoseAnswer).times(2),
            Rule::on(Method::DELETE, Fault::LoseAnswer).times(1),
        ],
        Trouble::WritesSlow => writes.map(|method| Rule::on(method, Fault::Delay(Duration::from_millis(20)))).into(),
        Trouble::ReadsFail => {
            [Method::GET, Method::HEAD].map(|method| Rule::on(method, Fault::internal_error())).into()
        }
        Trouble::BodyBreaks => vec![Rule::on(Method::GET, Fault::BodyBreaks(0)).times(1)],
        Trouble::Down => vec![Rule::always(Fault::Cut)],
    }
}
