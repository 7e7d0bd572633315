export {at as member} from '../core/json.ts';
