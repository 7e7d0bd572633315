/**
 * A real libvirtd for one test: unprivileged, with private directories, without network. It serves `test:///default`, a
 * private `test:///abs/file.xml` per connection, and `qemu:///session`, whose storage driver performs real uploads and
 * downloads. It dies with the process of the test. The libvirt of this machine is not touched.
 */
import {spawn, type ChildProcess} from 'node:child_process';
import {once} from 'node:events';
import {chown, mkdir, mkdtemp, rm, writeFile} from 'node:fs/promises';
import {connect} from 'node:net';
import {tmpdir} from 'node:os';
import {setTimeout as delay} from 'node:timers/promises';

/**
 * nobody and nogroup in Debian. If the tests run as root, libvirtd runs as this user, because as root it would be the
 * system daemon of the machine.
 */
const nobody = 65_534;
/** Size of `sun_path` in Linux, including the final NUL. */
const socketPathLimit = 108;

export interface TestLibvirtd extends AsyncDisposable {
	readonly socketPath: string;
	/** Its home directory. Disposing removes it. */
	readonly directory: string;
	/** The user that it runs as. */
	readonly uid: number;
	/** Undefined while stopped. */
	readonly pid: number | undefined;
	/** Kills it, with its connections. */
	stop(): Promise<void>;
	/** Starts it again after `stop`, on the same socket. */
	start(): Promise<void>;
}

export interface TestLibvirtdOptions {
	/** Lines of libvirtd.conf. */
	readonly config?: readonly string[];
}

export async function startTestLibvirtd({config = []}: TestLibvirtdOptions = {}): Promise<TestLibvirtd> {
	const asRoot = process.getuid?.() === 0;
	const uid = asRoot ? nobody : (process.getuid?.() ?? nobody);
	const directory = await mkdtemp(`${tmpdir()}/caat-lv-`);
	await using undo = new AsyncDisposableStack();
	undo.defer(async () => rm(directory, {recursive: true, force: true}));
	const socketPath = `${directory}/run/libvirt/libvirt-sock`;
	if (socketPath.length >= socketPathLimit) {
		throw new Error(`The path ${socketPath} is too long for a unix socket: set TMPDIR to a shorter one.`);
	}

	for (const path of [
		directory,
		`${directory}/run`,
		`${directory}/config`,
		`${directory}/cache`,
		`${directory}/data`,
	]) {
		await mkdir(path, {recursive: true, mode: 0o700});
		await chown(path, uid, asRoot ? nobody : (process.getgid?.() ?? nobody));
	}

	await writeFile(
		`${directory}/libvirtd.conf`,
		['auth_unix_rw = "none"', 'log_outputs = "3:stderr"', ...config, ''].join('\n'),
	);
	const environment = {
		PATH: process.env['PATH'],
		HOME: directory,
		XDG_RUNTIME_DIR: `${directory}/run`,
		XDG_CONFIG_HOME: `${directory}/config`,
		XDG_CACHE_HOME: `${directory}/cache`,
		XDG_DATA_HOME: `${directory}/data`,
	};
	let running: {readonly child: ChildProcess; readonly exited: Promise<unknown>} | undefined;
	const stop = async (): Promise<void> => {
		running?.child.kill('SIGKILL');
		await running?.exited;
		running = undefined;
		await rm(socketPath, {force: true});
	};

	const start = async (): Promise<void> => {
		const command = [
			'setpriv',
			'--pdeathsig',
			'KILL',
			...(asRoot ? [`--reuid=${nobody}`, `--regid=${nobody}`, '--clear-groups'] : []),
			'libvirtd',
			'--config',
			`${directory}/libvirtd.conf`,
			'--pid-file',
			`${directory}/run/libvirtd.pid`,
		];
		const child = spawn(command[0] ?? '', command.slice(1), {
			cwd: directory,
			env: environment,
			stdio: ['ignore', 'ignore', 'pipe'],
		});
		const exited = once(child, 'exit');
		running = {child, exited};
		let errors = '';
		child.stderr.setEncoding('utf8').on('data', (text: string) => {
			errors = (errors + text).slice(-4000);
		});
		const giveUpAt = performance.now() + 60_000;
		while (!(await listens(socketPath))) {
			if (child.exitCode !== null || child.signalCode !== null || performance.now() > giveUpAt) {
				throw new Error(
					`libvirtd did not start (${child.exitCode ?? child.signalCode ?? 'it does not listen'}); is the Debian package libvirt-daemon-system installed?\n${errors}`,
				);
			}

			// Poll, because libvirtd gives no signal when its socket is ready.
			await delay(5);
		}
	};

	undo.defer(stop);
	await start();
	const owned = undo.move();
	return {
		socketPath,
		directory,
		uid,
		stop,
		start,
		get pid() {
			return running?.child.pid;
		},
		[Symbol.asyncDispose]: async () => owned.disposeAsync(),
	};
}

async function listens(path: string): Promise<boolean> {
	const socket = connect({path});
	try {
		await once(socket, 'connect');
		return true;
	} catch {
		return false;
	} finally {
		socket.destroy();
	}
}
