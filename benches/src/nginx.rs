//! The reference for what a web server can give out: nginx with `sendfile` over files in the page cache, as an outside
//! program. A missing nginx is an error that says what to do.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use dfstore_tests::process::{Process, cpu_time, leashed};
use dfstore_tests::{dirs, eventually, ports};
use tempfile::TempDir;

const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A running nginx that serves a folder. It ends when this is dropped.
pub struct Nginx {
    process: Process,
    address: SocketAddr,
    folder: TempDir,
}

impl Nginx {
    /// Starts one with so many worker processes.
    pub fn start(workers: usize) -> Result<Nginx> {
        let folder = dirs::temporary("nginx")?;
        let port = ports::free(1)?[0];
        let config = folder.path().join("nginx.conf");
        fs::create_dir(folder.path().join("files"))?;
        // Workers of root's nginx become somebody who may not read the folder, unless told otherwise.
        let user = if fs::metadata(folder.path())?.uid() == 0 { "user root;\n" } else { "" };
        fs::write(&config, configuration(user, folder.path(), port, workers))?;
        let mut command = leashed("nginx");
        command.arg("-e").arg(folder.path().join("error.log")).arg("-c").arg(&config);
        let process = Process::start("nginx", command, &folder.path().join("log"))
            .context("nginx cannot be run: install it (Debian, Ubuntu: apt-get install nginx-light)")?;
        let mut nginx = Nginx { process, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), folder };
        let accepts = || TcpStream::connect(nginx.address).is_ok().then_some(());
        eventually("nginx accepts a client", START_TIMEOUT, accepts).map_err(|error| nginx.process.explain(error))?;
        Ok(nginx)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes a file that it serves as `/NAME`.
    pub fn place(&self, name: &str, bytes: &[u8]) -> Result<()> {
        Ok(fs::write(self.folder.path().join("files").join(name), bytes)?)
    }

    /// CPU time of all its processes.
    pub fn cpu_time(&self) -> Result<Duration> {
        let pid = self.process.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).context("nginx's workers")?;
        let workers = children.split_whitespace().map(|pid| cpu_time(pid.parse()?));
        workers.sum::<Result<Duration>>()
    }
}

fn configuration(user: &str, folder: &Path, port: u16, workers: usize) -> String {
    let folder = folder.display();
    format!(
        "{user}daemon off;\nworker_processes {workers};\npid {folder}/nginx.pid;\nevents {{ worker_connections 1024; }}\n\
         http {{\n access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;\n\
         client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;\n\
         uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n\
         server {{ listen 127.0.0.1:{port}; location / {{ root {folder}/files; }} }}\n}}\n"
    )
}
