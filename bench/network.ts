/**
 * Measures the cost of the network of a pod: `node bench/network.ts`. Prints the median of 50 in milliseconds, with
 * this process as it is and at 300 MB resident; the longest stall of the event loop; 200 concurrent reservations; and
 * the throughput of a tunnel with the guard, with the rules of the previous version, and without rules. Requires root,
 * for its network namespaces.
 */
import {monitorEventLoopDelay} from 'node:perf_hooks';
import {Iproute2} from '../src/network/iproute2.ts';
import {SpawnServer} from '../src/network/spawn-server.ts';
import type {PodNetwork} from '../src/sandbox/ports.ts';
import {earlierVersion} from '../test/network/intruder.ts';
import {podAddress, NetworkTestbed} from '../test/network/testbed.ts';

const rounds = 50;
const signal = (): AbortSignal => AbortSignal.timeout(60_000);

await using testbed = await NetworkTestbed.create();
await using networks = testbed.networks();
await using programs = new SpawnServer({shell: testbed.shell, size: 1});
const iproute2 = new Iproute2(programs);
await networks.check(signal());
const pod = await testbed.addPod('bridge', 5);
await networks.release(await networks.reserve('warm', pod, signal()), signal());

await measure();
const ballast: Buffer[] = [];
while (process.memoryUsage().rss < 300 << 20) {
	ballast.push(Buffer.alloc(16 << 20, ballast.length + 1));
}

await measure();
await atOnce(200);
await throughput();

async function measure(): Promise<void> {
	const times: Record<string, number[]> = {
		inspect: [],
		'reserve (inspect, VNI)': [],
		'attach (setup)': [],
		'release (teardown)': [],
	};
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
		const network: PodNetwork = await timed('reserve (inspect, VNI)', async () =>
			networks.reserve('bench', pod, signal()),
		);
		await timed('attach (setup)', async () => networks.attach(network, '192.168.122.105', signal()));
		await timed('release (teardown)', async () => networks.release(network, signal()));
	}

	stalls.disable();
	console.log(
		`${Math.round(process.memoryUsage().rss / 2 ** 20)} MB resident, longest stall ${(stalls.max / 1e6).toFixed(1)} ms`,
	);
	for (const [name, all] of Object.entries(times)) {
		console.log(`  ${name.padEnd(24)} ${median(all).toFixed(1).padStart(6)} ms`);
	}
}

async function atOnce(count: number): Promise<void> {
	await testbed.sh(`for n in $(seq ${count}); do ip netns add p$n; echo "link add eth0 netns p$n type bridge"; done >/run/batch; ip -batch /run/batch
		for n in $(seq ${count}); do printf 'link set eth0 up\\naddr add 10.9.0.1/32 dev eth0\\n' | ip -n p$n -batch -; done`);
	const start = performance.now();
	const reserved = await Promise.all(
		Array.from({length: count}, async (_, n) =>
			networks.reserve(`at-once-${n}`, testbed.netnsPath(`p${n + 1}`), signal()),
		),
	);
	console.log(
		`${count} reservations at once: ${Math.round(performance.now() - start)} ms, ${new Set(reserved.map(({vxlanId}) => vxlanId)).size} VNIs`,
	);
}

/**
 * From the VM to another pod. Between namespaces, the CPU of the sender does all the work up to the receiving socket.
 * So its time in the kernel is the cost of a packet, independent of other load on the machine.
 */
async function throughput(): Promise<void> {
	const [megabytes, count, repetitions] = [200, 50_000, 15];
	const [network, vm] = [await networks.reserve('bench', pod, signal()), await testbed.addVm(5)];
	await testbed.addPod('bridge', 9, 'client');
	const podns = await testbed.configureVm(5, network);
	await networks.attach(network, vm, signal());
	const client = podAddress('bridge', 9);
	const others = Array.from({length: 200}, (_, n) => `10.8.0.${n + 1} . ${560_000 + n}`).join(', ');
	const variants = [
		{
			name: 'guard, 200 tunnels',
			stream: [] as number[],
			packet: [] as number[],
			set: async () => {
				await networks.attach(network, vm, signal());
				await testbed.sh(`nft add element ip caa_peerpods tunnels '{ ${others} }'`);
			},
		},
		{
			name: 'version before it',
			stream: [] as number[],
			packet: [] as number[],
			set: async () => testbed.sh(earlierVersion(vm, network.vxlanId)),
		},
		{name: 'no rules', stream: [] as number[], packet: [] as number[], set: async () => undefined},
	];
	const tell = 'process.on("exit", () => console.log(process.cpuUsage().system))';
	const send = async (program: string): Promise<number> =>
		Number(await testbed.sh(`${process.execPath} -e '${tell}; ${program}'`, podns));
	await using _ = await testbed.serve('client', [
		'-e',
		'net.createServer(s => s.resume().on("end", () => s.end())).listen(8080, () => console.log("listening"))',
	]);
	for (let repetition = 0; repetition < repetitions; repetition++) {
		for (const {stream, packet, set} of variants) {
			await testbed.sh('nft flush ruleset');
			await set();
			stream.push(
				(await send(`
				const block = Buffer.alloc(1 << 20), socket = net.connect(8080, "${client}");
				let left = ${megabytes};
				const write = () => { while (left-- > 0) if (!socket.write(block)) return socket.once("drain", write); socket.end(); };
				socket.resume();
				write();`)) / megabytes,
			);
			packet.push(
				(await send(`
				const socket = dgram.createSocket("udp4");
				let left = ${count};
				const next = () => left-- > 0 ? socket.send("x", 9, "${client}", next) : socket.close();
				next();`)) / count,
			);
		}
	}

	for (const {name, stream, packet} of variants) {
		console.log(
			`  ${name.padEnd(24)} ${median(stream).toFixed(0).padStart(6)} us a megabyte, ${median(packet).toFixed(1)} us a small packet`,
		);
	}
}

function median(values: readonly number[]): number {
	return values.toSorted((one, other) => one - other)[values.length >> 1] ?? NaN;
}
