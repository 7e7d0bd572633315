/**
 * The daemon on the lab's worker node, from source, as its manifests would start it: settings by environment, all
 * others at their defaults. Knows of the daemon only its command line, its settings and the line that says it is ready.
 */
import {fileURLToPath} from 'node:url';
import type {Lab} from './lab.ts';
import {Service} from './service.ts';
import {paths} from './topology.ts';

const repository = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '');

/** Small VMs: the lab's guest needs little and is emulated. */
const settings = {
	CLUSTER_ID: 'lab',
	NODE_NAME: 'worker-0',
	LIBVIRT_CPU: '1',
	LIBVIRT_MEMORY: '256',
	LIBVIRT_ROOT_DISK_SIZE: '1',
};

/** Where it serves unless told otherwise, as seen in the lab. */
export const hypervisorSocket = `${paths.peerpod}/hypervisor.sock`;

/**
 * Resolves when it is ready. Disposing ends it with SIGTERM and waits.
 * @param env added to, or instead of, the lab's settings
 * @param confinement a program with its arguments that starts the daemon with less than everything; none if absent
 * @throws 'failed-precondition' with its last lines when it ends before
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

/** The relay process of the worker, as root without capabilities. As `startDaemon`. */
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
