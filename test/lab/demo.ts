/**
 * `npm run demo`: the complete product on one machine. Builds the guest image, and starts a KVM host and a worker node
 * in the lab, with the daemon on the worker. Then acts as the kata shim: creates and starts a pod VM, runs commands
 * through its agent, fetches a page from another pod at the address of the pod, stops the VM, and verifies that nothing
 * is left. If a step fails, it prints an explanation and exits with 1. After Ctrl-C, nothing is left either.
 */
import {createInterface} from 'node:readline';
import type {Readable} from 'node:stream';
import {fileURLToPath} from 'node:url';
import {isDeepStrictEqual, stripVTControlCharacters} from 'node:util';
import {Change} from '../../src/core/concurrency/change.ts';
import {AdaptorError, toError} from '../../src/core/errors.ts';
import {connect} from '../../src/ttrpc/client.ts';
import {AgentClient, runCommand} from './agent-client.ts';
import {get} from './clients.ts';
import {hypervisorSocket, startDaemon} from './daemon.ts';
import {buildGuestImage} from './image.ts';
import {inventoryWhen} from './inventory.ts';
import {startLab, type Lab} from './lab.ts';
import {Progress} from './progress.ts';
import type {Service} from './service.ts';
import {newSandboxId, podAnnotations, Shim} from './shim.ts';

const commands = [
	['uname', '-a'],
	['uname', '-m'],
	['ip', '-o', '-4', 'address'],
	['sh', '-c', 'echo "$(nproc) processors, $(free -m | awk \'/Mem/ {print $2}\') MiB"'],
] as const;
const logLevel = process.env['LOG_LEVEL'];
const pod = {name: 'hello', namespace: 'demo'};
const agentTimeoutMs = 60_000;

const progress = new Progress(process.stdout);
const stopping = new AbortController();
for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
	process.on(name, () => {
		if (stopping.signal.aborted) {
			process.exit(130); // The kernel ends the lab with this process.
		}

		stopping.abort(
			new AdaptorError({code: 'cancelled', what: `Stopped by ${name}; everything the demo started has ended`}),
		);
	});
}

try {
	await demo(stopping.signal);
	progress.line(`\nDone in ${progress.elapsed}.`);
} catch (error) {
	const {message} = toError(stopping.signal.aborted ? stopping.signal.reason : error);
	progress.line(`\nThe demo failed after ${progress.elapsed}: ${message}`);
	if (!stopping.signal.aborted) {
		progress.line('"LOG_LEVEL=debug npm run demo" lets the daemon say more.');
	}

	process.exitCode = stopping.signal.aborted ? 130 : 1;
}

async function demo(signal: AbortSignal): Promise<void> {
	const image = await buildGuestImage({steps: progress}, signal);
	await using lab = await progress.step(
		'Start a KVM host (libvirtd, sshd, DHCP) and a worker node on one subnet',
		async () => startLab({image, signal}),
	);
	await using daemon = await progress.step('Start cloud-api-adaptor on the worker', async report => {
		report.note(`LIBVIRT_URI=${lab.sshUri.replace(/\?.*/, '')}`);
		return startDaemon(lab, logLevel === undefined ? {} : {LOG_LEVEL: logLevel}, signal);
	});
	try {
		await playShim(lab, signal);
	} catch (error) {
		if (!signal.aborted) {
			await showEvidence(lab, daemon);
		}

		throw error;
	}

	await progress.step('Stop cloud-api-adaptor', async report => report.note(`exit code ${await daemon.stop()}`));
}

async function playShim(lab: Lab, signal: AbortSignal): Promise<void> {
	const shim = new Shim(lab.outside(hypervisorSocket));
	const id = newSandboxId();
	await using podNetwork = await lab.podNamespace(pod.name);
	await using visitor = await lab.podNamespace('visitor');
	const before = await lab.inventory();
	using pods = watchPods(lab);

	progress.line('\nFrom here on we are the kata shim, on the hypervisor socket:');
	await progress.step('Version', async report => report.note(await shim.version(signal)));
	const agentSocket = await progress.step('CreateVM', async report => {
		const path = await shim.createVm(
			{
				id,
				annotations: podAnnotations(pod.name, pod.namespace),
				networkNamespacePath: podNetwork.netnsPath,
			},
			signal,
		);
		report.note(`agent socket ${path.replace(id, `${id.slice(0, 8)}…`)}`);
		return path;
	});
	await progress.step('StartVM', async report => {
		await shim.startVm(id, signal);
		const {domains, macs, volumes} = await lab.inventory();
		report.note(
			`${domains.join(', ')}, ${macs.join(', ')}, ${volumes.length} volumes, pod address ${podNetwork.podIp}`,
		);
	});
	progress.line('\nMeanwhile, "cloud-api-adaptor pods -watch" on the worker showed:');
	for (const line of await pods.until(/running/v)) {
		progress.line(`    ${line}`);
	}

	progress.line('\nOver the agent socket, through the relay and mutual TLS, into the VM:');
	await using client = await connect(lab.outside(agentSocket), signal);
	const agent = new AgentClient(client);
	await callAgent(agent, id, signal);

	progress.line('\nOver the pod network, through the tunnel, into the VM:');
	const url = `http://${podNetwork.podIp}/`;
	const page = await progress.step(`Another pod, ${visitor.podIp}, fetches ${url}`, async () =>
		get(visitor, url, signal),
	);
	progress.line(`    ${page.trimEnd()}`);
	if (!page.includes(visitor.podIp) || !page.includes('s390x')) {
		throw new AdaptorError({
			code: 'internal',
			what: 'The page of the VM is wrong for that pod',
			where: {url},
		});
	}

	progress.line('');
	await progress.step('DestroySandbox', async () =>
		agent.call('AgentService/DestroySandbox', {}, signal, agentTimeoutMs),
	);
	await progress.step('StopVM', async () => shim.stopVm(id, signal));
	await progress.step('Nothing is left on the KVM host and the worker', async report => {
		const after = await inventoryWhen(
			'VM, volumes and sockets to be gone',
			now => isDeepStrictEqual(now, before),
			lab,
			signal,
		);
		report.note(
			`${after.domains.length} domains, ${after.volumes.length} volumes besides the base, as before CreateVM`,
		);
	});
}

/** Runs `pods -watch` on the worker. */
function watchPods(lab: Lab): Disposable & {until(pattern: RegExp): Promise<readonly string[]>} {
	const child = lab.workerRun([process.execPath, 'src/main.ts', 'pods', '-watch'], {
		cwd: fileURLToPath(new URL('../..', import.meta.url)),
		env: {},
		stdio: ['ignore', 'pipe', 'ignore'],
	});
	const lines: string[] = [];
	const shown = new Change();
	createInterface({input: child.stdout as Readable}).on('line', line => {
		lines.push(line);
		shown.tell();
	});
	return {
		/** Its lines so far, when one matches. */
		async until(pattern) {
			while (!lines.some(line => pattern.test(line))) {
				await shown.next(stopping.signal);
			}

			return lines.filter(line => line !== '' && !line.includes('no pod VMs'));
		},
		[Symbol.dispose]: () => void child.kill(),
	};
}

async function callAgent(agent: AgentClient, id: string, signal: AbortSignal): Promise<void> {
	const container = 'greeter';
	await progress.step('Check', async report =>
		report.note((await agent.call('Health/Check', {}, signal, agentTimeoutMs)).status),
	);
	await progress.step('GetGuestDetails', async report => {
		const {
			agent_details: {version},
		} = await agent.call('AgentService/GetGuestDetails', {}, signal, agentTimeoutMs);
		report.note(`agent ${version}`);
	});
	await progress.step('CreateSandbox, CreateContainer, StartContainer: a web server', async () => {
		await agent.call('AgentService/CreateSandbox', {sandbox_id: id, hostname: pod.name}, signal, agentTimeoutMs);
		await agent.call(
			'AgentService/CreateContainer',
			{container_id: container, OCI: {Process: {Args: ['/init', 'serve', '80'], Cwd: '/'}}},
			signal,
			agentTimeoutMs,
		);
		await agent.call('AgentService/StartContainer', {container_id: container}, signal, agentTimeoutMs);
		await agent.call('AgentService/ReadStdout', {container_id: container, len: 100}, signal, agentTimeoutMs); // Its first output means that it serves.
	});
	for (const argv of commands) {
		const {exitCode, stdout, stderr} = await progress.step(`ExecProcess: ${argv.join(' ')}`, async () =>
			runCommand(agent, container, argv, signal),
		);
		for (const line of `${stdout}${stderr}`.trimEnd().split('\n')) {
			progress.line(`    ${line}`);
		}

		if (exitCode !== 0) {
			throw new AdaptorError({
				code: 'internal',
				what: 'A command in the VM failed',
				where: {command: argv.join(' '), exitCode},
			});
		}
	}
}

/** Prints the last output of the daemon, the guests and libvirtd, to explain a failed step. */
async function showEvidence(lab: Lab, daemon: Service): Promise<void> {
	const show = (title: string, lines: readonly string[]): void =>
		progress.line(`\n${title}:\n${lines.map(line => `    ${line}`).join('\n')}`);
	show('Last output of the daemon', daemon.tail.slice(-20));
	for (const [domain, text] of await lab.consoles()) {
		show(
			`Console of ${domain}`,
			stripVTControlCharacters(text)
				.split(/[\r\n]+/)
				.slice(-15),
		);
	}

	// Without the warnings that it prints whenever it reads the ARP table and finds an unexpected format.
	show(
		'Last output of libvirtd',
		lab.kvmHost.libvirtd.tail.filter(line => !line.includes('virArpTableGet')).slice(-5),
	);
}
