/**
 * The daemon on the worker node of the lab, started from source like by its manifests: settings by environment
 * variables, all others at their defaults. Depends only on its command line, its settings and the log line that reports
 * readiness.
 */
import {fileURLToPath} from 'node:url';
import type {Lab} from './lab.ts';
import {Service} from './service.ts';
import {paths} from './topology.ts';

const repository = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '');

/** Small VMs: the guest of the lab is emulated and needs few resources. */
const settings = {
	CLUSTER_ID: 'lab',
	NODE_NAME: 'worker-0',
	LIBVIRT_CPU: '1',
	LIBVIRT_MEMORY: '256',
	LIBVIRT_ROOT_DISK_SIZE: '1',
};

/** Its default socket, as a path in the lab. */
export const hypervisorSocket = `${paths.peerpod}/hypervisor.sock`;

/**
 * Resolves when it is ready. Disposing ends it with SIGTERM and waits.
 * @param env overrides or extends the settings of the lab
 * @param confinement a program with its arguments that starts the daemon with fewer privileges; none if absent
 * @throws 'failed-precondition' with the last log lines if it ends before it is ready
 */
export async function startDaemon(
	lab: Lab,
	env: Readonly<Record<string, string>>,
	signal: AbortSignal,
	confinement: readonly string[] = [],
): Promise<Service> {
	const started = program(lab, ['libvirt', '-uri', lab.sshUri], {...settings, ...env}, confinement);
	return readyOrStopped(started, signal);
}

/** Starts the relay process of the worker, as root without capabilities. Otherwise like `startDaemon`. */
export async function startRelayProcess(
	lab: Lab,
	env: Readonly<Record<string, string>>,
	signal: AbortSignal,
): Promise<Service> {
	const confinement = ['setpriv', '--bounding-set=-all', '--inh-caps=-all', '--no-new-privs'];
	return readyOrStopped(program(lab, ['relay'], env, confinement), signal);
}

function program(
	lab: Lab,
	command: readonly string[],
	env: Readonly<Record<string, string>>,
	confinement: readonly string[],
): Service {
	return new Service(
		`cloud-api-adaptor ${command[0] ?? ''}`,
		lab.workerRun([...confinement, process.execPath, 'src/main.ts', ...command], {
			cwd: repository,
			env,
			stdio: ['ignore', 'ignore', 'pipe'],
		}),
	);
}

async function readyOrStopped(started: Service, signal: AbortSignal): Promise<Service> {
	try {
		await started.line(/"msg":"ready"/, signal);
		return started;
	} catch (error) {
		await started.stop();
		throw error;
	}
}
