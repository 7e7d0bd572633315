/**
 * Measures the cost of a start without the boot of the guest, in the lab: the work of the daemon until the VM runs, and
 * the time from the forwarder listening to the answer of StartVM. Prints both as parts of the whole, and compares them
 * with the budgets of docs/architecture.md. `node bench/start.ts`; takes about a minute.
 */
import {once} from 'node:events';
import {createInterface} from 'node:readline';
import {hypervisorSocket, startDaemon} from '../test/lab/daemon.ts';
import {buildGuestImage} from '../test/lab/image.ts';
import {startLab, type Lab} from '../test/lab/lab.ts';
import {newSandboxId, podAnnotations, Shim} from '../test/lab/shim.ts';

const starts = 7;
const {signal} = new AbortController();

/** Retries to connect, and prints the time of the first connection, in milliseconds of the wall clock. */
const prober = `
	const {connect} = require('node:net');
	const [address] = process.argv.slice(1);
	const attempt = () => {
		const socket = connect({host: address, port: 15150});
		const retry = setTimeout(() => { socket.destroy(); attempt(); }, 50);
		socket.on('connect', () => { console.log(performance.timeOrigin + performance.now()); process.exit(); });
		socket.on('error', () => { clearTimeout(retry); setTimeout(attempt, 2); });
	};
	attempt();
`;

async function listeningSince(lab: Lab, address: string): Promise<number> {
	const child = lab.hostRun([process.execPath, '-e', prober, address], {stdio: ['ignore', 'pipe', 'inherit']});
	if (child.stdout === null) {
		throw new TypeError('no pipe');
	}

	const [line] = (await once(createInterface({input: child.stdout}), 'line')) as [string];
	return Number(line);
}

function median(values: readonly number[]): number {
	return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}

const now = (): number => performance.timeOrigin + performance.now();
const image = await buildGuestImage({}, signal);
await using lab = await startLab({image, signal});
// docs/adr/0027-network-filter.md has the cost of network filters in libvirt.
await using daemon = await startDaemon(lab, {LIBVIRT_NET_FILTER: 'off'}, signal);
await using pod = await lab.podNamespace('bench');
const shim = new Shim(lab.outside(hypervisorSocket));

/**
 * @returns milliseconds of the whole start, of the work of the daemon before the VM runs, and from the forwarder
 * listening to the answer
 */
async function measure(
	address: string | undefined,
): Promise<{address: string; whole: number; own: number; answer: number}> {
	const id = newSandboxId();
	await shim.createVm(
		{
			id,
			annotations: podAnnotations('bench', 'bench'),
			networkNamespacePath: pod.netnsPath,
		},
		signal,
	);
	const listening = address === undefined ? undefined : listeningSince(lab, address);
	const startedAt = now();
	await shim.startVm(id, signal);
	const answeredAt = now();
	const line = JSON.parse(await daemon.line(new RegExp(`${id}.*"msg":"pod VM started"`), signal)) as {
		address: string;
		timings: Record<string, number>;
	};
	await shim.stopVm(id, signal);
	return {
		address: line.address,
		whole: answeredAt - startedAt,
		own: line.timings['start the VM'] ?? Number.NaN,
		answer: answeredAt - ((await listening) ?? Number.NaN),
	};
}

const {address} = await measure(undefined);
const measured: Array<Awaited<ReturnType<typeof measure>>> = [];
for (let count = 0; count < starts; count++) {
	measured.push(await measure(address));
}

const whole = median(measured.map(each => each.whole));
const row = (what: string, ms: number, budgetMs?: number): void => {
	console.log(
		`${what.padEnd(44)} ${ms.toFixed(0).padStart(6)} ms ${((100 * ms) / whole).toFixed(1).padStart(6)} %${budgetMs === undefined ? '' : `   budget ${budgetMs} ms`}`,
	);
};

console.log(`median of ${starts} starts, one after the other`);
row('StartVM as a whole', whole);
row('our work until the VM runs', median(measured.map(each => each.own)), 300);
row('from "forwarder listens" to the answer', median(measured.map(each => each.answer)), 250);
