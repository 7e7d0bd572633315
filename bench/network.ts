/**
 * What a pod's network costs: `node bench/network.ts`. Median of 50 in milliseconds, as this process is and then at 300 MB resident;
 * the longest stall of the event loop; 200 reservations at once. Needs root, for network namespaces of its own.
 */
import {monitorEventLoopDelay} from 'node:perf_hooks';
import {Iproute2} from '../src/network/iproute2.ts';
import {SpawnServer} from '../src/network/spawn-server.ts';
import type {PodNetwork} from '../src/sandbox/ports.ts';
import {World} from '../test/network/world.ts';

const rounds = 50;
const signal = (): AbortSignal => AbortSignal.timeout(60_000);

await using world = await World.create();
await using networks = world.networks();
await using programs = new SpawnServer({shell: world.shell, size: 1});
const iproute2 = new Iproute2(programs);
await networks.check(signal());
const pod = await world.addPod('bridge', 5);
await networks.release(await networks.reserve('warm', pod, signal()), signal());

await measure();
const ballast: Buffer[] = [];
while (process.memoryUsage().rss < 300 << 20) {
	ballast.push(Buffer.alloc(16 << 20, ballast.length + 1));
}

await measure();
await atOnce(200);

async function measure(): Promise<void> {
	const times: Record<string, number[]> = {'inspect': [], 'reserve (inspect, VNI)': [], 'attach (setup)': [], 'release (teardown)': []};
	const timed = async <T>(name: string, work: () => Promise<T>): Promise<T> => {
		const start = performance.now();
		const result = await work();
		times[name]?.push(performance.now() - start);
		return result;
	};
	const stalls = monitorEventLoopDelay({resolution: 1});
	stalls.enable();
	for (let round = 0; round < rounds; round++) {
		await timed('inspect', async () => iproute2.inspect(pod, signal()));
		const network: PodNetwork = await timed('reserve (inspect, VNI)', async () => networks.reserve('bench', pod, signal()));
		await timed('attach (setup)', async () => networks.attach(network, '192.168.122.105', signal()));
		await timed('release (teardown)', async () => networks.release(network, signal()));
	}

	stalls.disable();
	console.log(`${Math.round(process.memoryUsage().rss / 2 ** 20)} MB resident, longest stall ${(stalls.max / 1e6).toFixed(1)} ms`);
	for (const [name, all] of Object.entries(times)) {
		console.log(`  ${name.padEnd(24)} ${median(all).toFixed(1).padStart(6)} ms`);
	}
}

async function atOnce(count: number): Promise<void> {
	await world.sh(`for n in $(seq ${count}); do ip netns add p$n; echo "link add eth0 netns p$n type bridge"; done >/run/batch; ip -batch /run/batch
		for n in $(seq ${count}); do printf 'link set eth0 up\\naddr add 10.9.0.1/32 dev eth0\\n' | ip -n p$n -batch -; done`);
	const start = performance.now();
	const reserved = await Promise.all(Array.from({length: count}, async (_, n) => networks.reserve(`at-once-${n}`, world.netnsPath(`p${n + 1}`), signal())));
	console.log(`${count} reservations at once: ${Math.round(performance.now() - start)} ms, ${new Set(reserved.map(({vxlanId}) => vxlanId)).size} VNIs`);
}

function median(values: readonly number[]): number {
	return values.toSorted((one, other) => one - other)[values.length >> 1] ?? NaN;
}
